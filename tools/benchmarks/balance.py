"""How long ranks wait for the slowest one, by simulation: rows put together by their tokens and by their cost.

Usage: ``python tools/benchmarks/balance.py [--samples 300000] [--tokens 16384] [--ranks 8 32 256]``

Samples are those of ``padding.py``, text and pictures; in the third data set every tenth is a video of 8 frames of 144
tokens each. A step takes as long as its most expensive row, by the floating-point operations of the published sizes:
Vicuna-7B, CLIP-L/14 at 336 px, ConvNeXt-L at 768 px. ``by tokens`` is how rows were put together before costs were
known, ``by cost`` is what a training does (`ShuffledBatchSampler.balance`).
"""

from __future__ import annotations

import argparse
from itertools import islice

import numpy as np
from padding import published_samples
from rich.console import Console
from rich.table import Table

from xtuner.data.batches.samplers import LengthGroupedBatchSampler
from xtuner.model.flops import BY_TOKENS, CostWeights, attention_flops

LAYERS, WIDTH, INNER = 32, 4096, 11008
DECODER = LAYERS * (4 * WIDTH**2 + 3 * WIDTH * INNER)
"""Weights that a token of Vicuna-7B meets, without the head."""
CLIP = 2.0 * 577 * 24 * (4 * 1024**2 + 2 * 1024 * 4096)
CONVNEXT = 2.0 * 34.4e9 * (768 / 224) ** 2
"""34.4 G multiplications at 224 px (ConvNeXt, arXiv 2201.03545, table 12)."""
FRAMES, FRAME_TOKENS = 8, 144


def weights(passes: int) -> CostWeights:
    """Costs of a step: `passes` through each weight of the language model, 2 where it is frozen and 3 where trained."""
    return CostWeights(2.0 * passes * DECODER, CLIP + CONVNEXT, attention_flops(WIDTH, LAYERS, 0.5))


def waiting(
    lengths: np.ndarray, num_images: np.ndarray, tokens: int, ranks: int, true: CostWeights, by: CostWeights
) -> float:
    """Share of the time that ranks wait, over an epoch."""
    groups = (num_images > 0).astype(np.int64)
    costs = true.of(lengths, num_images)
    sampler = LengthGroupedBatchSampler(
        lengths, 16, world_size=ranks, max_tokens_per_batch=tokens, groups=groups, num_images=num_images
    )
    sampler.balance(by)
    rows = [list(islice(sampler_of(sampler, rank), sampler.steps_per_epoch)) for rank in range(ranks)]
    seconds = np.array([[costs[row].sum() for row in of_rank] for of_rank in rows])
    return float(1 - seconds.mean() / seconds.max(axis=0).mean())


def sampler_of(sampler: LengthGroupedBatchSampler, rank: int) -> LengthGroupedBatchSampler:
    """The same sampler on another rank; its plan of the epoch is shared."""
    sampler.rank = rank
    return sampler


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=300_000)
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 32, 256])
    args = parser.parse_args()
    drawn = published_samples(args.samples)
    pictures = drawn.has_picture.astype(np.int64)
    is_video = np.arange(args.samples) % 10 == 0
    of_videos = np.where(is_video, drawn.text + FRAMES * FRAME_TOKENS, drawn.lengths)
    frames = np.where(is_video, FRAMES, pictures)
    cases = (
        ("SFT, all weights", drawn.lengths, pictures, 3),
        ("LoRA or stage 1", drawn.lengths, pictures, 2),
        ("LoRA, every tenth a video", of_videos, frames, 2),
    )
    table = Table("training", "ranks", "by tokens", "by cost", title=f"ranks wait, rows of {args.tokens:,} tokens")
    worst = 0.0
    for name, lengths, num_images, passes in cases:
        true = weights(passes)
        for ranks in args.ranks:
            shares = [waiting(lengths, num_images, args.tokens, ranks, true, by) for by in (BY_TOKENS, true)]
            worst = max(worst, shares[1])
            table.add_row(name, str(ranks), *(f"{share:.2%}" for share in shares))
    Console(highlight=False).print(table)
    if worst > 0.01:
        raise SystemExit(f"ranks wait {worst:.2%} of the time, more than 1 %")


if __name__ == "__main__":
    main()
