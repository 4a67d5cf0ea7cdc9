"""Order of samples: endless micro-batches, the same for any number of workers, that can start at any step.

An epoch is cut into optimizer steps of ``world_size * grad_accum * batch_size`` samples. The last step is
filled with samples from the start of that epoch's order, so every rank always has the same amount of work;
otherwise no sample comes twice or is lost across ranks. The order is a function of seed and epoch alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np

from xtuner.errors import XTunerError


class ShuffledBatchSampler:
    """Micro-batches of one rank in a new random order each epoch.

    Iterating is endless. One optimizer step takes `grad_accum` micro-batches; they come in order.

    Args:
        lengths: length of each sample in tokens; here only their number counts.
        batch_size: samples of a micro-batch.
        grad_accum: micro-batches of one rank per optimizer step.
        rank: this process, in [0, world_size).
        world_size: number of processes that share the data.
        seed: orders of two seeds have nothing in common.

    Raises:
        XTunerError: no samples, or a number below 1.
    """

    provided_by_parent: ClassVar[tuple[str, ...]] = (
        "lengths",
        "batch_size",
        "grad_accum",
        "rank",
        "world_size",
        "seed",
    )

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        batch_size: int,
        grad_accum: int = 1,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
    ) -> None:
        if len(lengths) == 0:
            raise XTunerError("the training data holds no samples: check data_path and what was dropped.")
        if min(batch_size, grad_accum, world_size) < 1 or not 0 <= rank < world_size:
            raise XTunerError(
                "batch_size, accumulative_counts and world size must be at least 1 and the rank below the "
                f"world size; found {batch_size}, {grad_accum}, {world_size}, rank {rank}."
            )
        self.lengths = np.asarray(lengths)
        self.batch_size = batch_size
        self.grad_accum = grad_accum
        self.rank = rank
        self.world_size = world_size
        self.seed = seed
        self._start = 0

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch, the filled last one included."""
        return -(-len(self.lengths) // (self.batch_size * self.grad_accum * self.world_size))

    def set_start(self, step: int) -> None:
        """Makes the next iteration begin with optimizer step `step` (from 0, counted over all epochs)."""
        if step < 0:
            raise XTunerError(f"a training cannot start at step {step}: give a number from 0.")
        self._start = step

    def __iter__(self) -> Iterator[list[int]]:
        epoch, skipped = divmod(self._start, self.steps_per_epoch)
        while True:
            steps = self.epoch_order(epoch).reshape(-1, self.grad_accum, self.world_size, self.batch_size)
            for micro_batches in steps[skipped:, :, self.rank]:
                yield from micro_batches.tolist()
            epoch, skipped = epoch + 1, 0

    def epoch_order(self, epoch: int) -> np.ndarray:
        """Returns all ranks' samples of `epoch`: (steps, grad_accum, world_size, batch_size), flattened."""
        return self._filled(self._generator(epoch))

    def _generator(self, epoch: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, epoch])

    def _filled(self, generator: np.random.Generator) -> np.ndarray:
        """A random order of all samples, filled up to whole steps from its own start."""
        total = self.steps_per_epoch * self.batch_size * self.grad_accum * self.world_size
        return np.resize(generator.permutation(len(self.lengths)), total)


class LengthGroupedBatchSampler(ShuffledBatchSampler):
    """Like `ShuffledBatchSampler`, but what is computed together is of similar length.

    The random order is cut into megabatches; each is sorted by length and cut into chunks of one
    micro-batch per rank, whose order is then shuffled over the whole epoch. So padding is small, all ranks
    have similar work at a time, and long samples come at any time.

    Args:
        lengths: true length of each sample: text, image and box tokens.
        batch_size: as in `ShuffledBatchSampler`, like the next four.
        grad_accum: see there.
        rank: see there.
        world_size: see there.
        seed: see there.
        megabatch_chunks: chunks that are sorted together; more = less padding, less random company.
        groups: a number per sample; only samples of one group share a chunk (say, text only = 0, with
            picture = 1), but for what is left over of each group. None: all may meet.
    """

    provided_by_parent: ClassVar[tuple[str, ...]] = (*ShuffledBatchSampler.provided_by_parent, "groups")

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        batch_size: int,
        grad_accum: int = 1,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        megabatch_chunks: int = 64,
        groups: Sequence[int] | np.ndarray | None = None,
    ) -> None:
        super().__init__(lengths, batch_size, grad_accum, rank, world_size, seed)
        if megabatch_chunks < 1:
            raise XTunerError(f"megabatch_chunks must be at least 1, found {megabatch_chunks}.")
        if groups is not None and len(groups) != len(self.lengths):
            raise XTunerError(f"groups must name one group per sample: {len(groups)} for {len(self.lengths)}.")
        self.megabatch_chunks = megabatch_chunks
        self.groups = np.zeros(len(self.lengths), dtype=np.int64) if groups is None else np.asarray(groups)

    def epoch_order(self, epoch: int) -> np.ndarray:
        """Returns all ranks' samples of `epoch`: (steps, grad_accum, world_size, batch_size), flattened."""
        generator = self._generator(epoch)
        filled = self._filled(generator)
        chunk = self.batch_size * self.world_size
        whole: list[np.ndarray] = []
        left: list[np.ndarray] = []
        for group in np.unique(self.groups):
            members = filled[self.groups[filled] == group]
            cut = len(members) // chunk * chunk
            whole.append(members[:cut])
            left.append(members[cut:])
        # the number of filled samples is a multiple of the chunk, so what is left over is one too
        chunks = np.concatenate([self._sorted(part).reshape(-1, chunk) for part in [*whole, np.concatenate(left)]])
        return chunks[generator.permutation(len(chunks))].reshape(-1)

    def _sorted(self, samples: np.ndarray) -> np.ndarray:
        """Sorts each megabatch by length; equally long samples keep their random order."""
        megabatch = np.arange(len(samples)) // (self.megabatch_chunks * self.batch_size * self.world_size)
        return samples[np.lexsort((self.lengths[samples], megabatch))]
