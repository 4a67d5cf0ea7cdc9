"""Padding on lengths like the published data's: random batches, grouped by length, packed by tokens.

Usage: ``python tools/benchmarks/padding.py [--samples 300000] [--batch 16] [--ranks 8] [--tokens 16384]``

Object tokens of a picture follow the published boxes (none in 11 % of pictures, mean 13, up to 100); text follows a
log-normal law with a mean of about 200 ids, at most 1,472; a tenth of the samples have no picture. A row that is packed
has no padding at all: what remains is how evenly the ranks are loaded, told as the share of time that ranks wait for
the one with the most tokens in its row.
"""

from __future__ import annotations

import argparse
import time
from itertools import islice
from typing import NamedTuple

import numpy as np
from rich.console import Console

from xtuner.data.batches.samplers import LengthGroupedBatchSampler, ShuffledBatchSampler

SHARES = {(0, 0): 0.11, (1, 10): 0.47, (11, 20): 0.24, (21, 30): 0.09, (31, 50): 0.06, (51, 100): 0.03}
"""Boxes of a picture (from, to): share of pictures, as counted in the published file."""


class Published(NamedTuple):
    """Of each sample: text ids (a picture's placeholder included), boxes, whether it has a picture."""

    text: np.ndarray
    boxes: np.ndarray
    has_picture: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Positions of each sample: a placeholder becomes 576 tokens, a box one."""
        return self.text + self.has_picture * 575 + self.boxes


def published_samples(samples: int, seed: int = 0) -> Published:
    """Draws samples by the law above."""
    draw = np.random.default_rng(seed)
    spans = np.array(list(SHARES))[draw.choice(len(SHARES), samples, p=list(SHARES.values()))]
    boxes = draw.integers(spans[:, 0], spans[:, 1] + 1)
    text = np.clip(draw.lognormal(5.0, 0.8, samples), 20, 1472).astype(np.int64)
    has_picture = draw.random(samples) > 0.1
    return Published(text, boxes * has_picture, has_picture)


def padding(batches: list[list[int]], lengths: np.ndarray) -> float:
    """Share of the positions that are padding when each batch is padded to its longest sample."""
    positions = sum(len(batch) * int(lengths[batch].max()) for batch in batches)
    return 1 - sum(int(lengths[batch].sum()) for batch in batches) / positions


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=300_000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=16_384)
    args = parser.parse_args()
    drawn = published_samples(args.samples)
    lengths, groups = drawn.lengths, drawn.has_picture.astype(np.int64)
    out = Console(highlight=False, soft_wrap=True)
    out.print(f"{args.samples:,} samples of {lengths.mean():.0f} tokens, {lengths.min()} to {lengths.max()}")
    common = {"batch_size": args.batch, "world_size": args.ranks}
    shuffled = ShuffledBatchSampler(lengths, **common)
    grouped = LengthGroupedBatchSampler(lengths, groups=groups, **common)
    for name, sampler in (("random", shuffled), ("grouped", grouped)):
        batches = list(islice(sampler, sampler.steps_per_epoch))
        out.print(f"{name} batches of {args.batch}: padding {padding(batches, lengths):.1%}")
    started = time.process_time()
    ranks = [
        ShuffledBatchSampler(lengths, rank=rank, max_tokens_per_batch=args.tokens, **common)
        for rank in range(args.ranks)
    ]
    rows = [list(islice(sampler, sampler.steps_per_epoch)) for sampler in ranks]
    seconds = (time.process_time() - started) / args.ranks
    tokens = np.array([[int(lengths[row].sum()) for row in of_rank] for of_rank in rows])
    waiting = 1 - tokens.mean() / tokens.max(axis=0).mean()
    out.print(
        f"packed rows of at most {args.tokens:,} tokens: padding 0.0%, {tokens.mean() / args.tokens:.1%} full, "
        f"ranks wait {waiting:.2%} of the time; {seconds:.2f} s to plan an epoch"
    )


if __name__ == "__main__":
    main()
