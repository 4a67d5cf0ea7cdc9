"""Order of samples: endless micro-batches, the same for any number of workers, that can start at any step.

An epoch is cut into micro-batches, of a number of samples or of a number of tokens, and those into optimizer steps of
``world_size * grad_accum`` micro-batches. The last step is filled from the start of that epoch's order, so every rank
always has the same amount of work; otherwise no sample comes twice or is lost across ranks. The order is a function of
seed and epoch alone.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from xtuner.data.batches.mixture import Mixture
from xtuner.data.store.token_rows import arrange_rows, check_fits, cut_by_tokens
from xtuner.errors import XTunerError
from xtuner.model.flops import BY_TOKENS, CostWeights


@dataclass(eq=False)
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
        source_of: number of the source of each sample; None = all of one.
        repeats: of each source, how often an epoch sees its samples; a fraction is drawn anew each epoch.
        max_tokens_per_batch: a micro-batch takes as many samples as have together at most so many tokens, instead of
            `batch_size`; for a model that packs them in one row. Micro-batches of about the same cost are computed at
            a time on all ranks.
        num_images: pictures of each sample; None = none.

    Attributes:
        made_for: micro-batch and number of processes that the order is made for; `continue_order` may set others.
        cost_weights: what a step costs per token, per picture besides its tokens, and per pair of tokens of one sample;
            `continue_order` may set others. Until `balance` is called, tokens alone count.

    Raises:
        XTunerError: no samples, a number below 1, or samples with more tokens than a micro-batch may have.
    """

    provided_by_parent: ClassVar[tuple[str, ...]] = (
        "lengths",
        "batch_size",
        "grad_accum",
        "rank",
        "world_size",
        "seed",
        "source_of",
        "repeats",
        "num_images",
    )

    lengths: Any
    batch_size: int
    grad_accum: int = 1
    rank: int = 0
    world_size: int = 1
    seed: int = 0
    source_of: np.ndarray | None = None
    repeats: Sequence[float] = (1.0,)
    max_tokens_per_batch: int | None = None
    num_images: Any = None

    def __post_init__(self) -> None:
        if len(self.lengths) == 0:
            raise XTunerError("the training data holds no samples: check data_path and the report of dropped samples.")
        if min(self.batch_size, self.grad_accum, self.world_size) < 1 or not 0 <= self.rank < self.world_size:
            raise XTunerError(
                "batch_size, accumulative_counts and world size must be at least 1 and the rank below the "
                f"world size; found {self.batch_size}, {self.grad_accum}, {self.world_size}, rank {self.rank}."
            )
        self.lengths = np.asarray(self.lengths)
        self.mixture = Mixture(len(self.lengths), self.source_of, self.repeats)
        if self.max_tokens_per_batch is not None:
            check_fits(self.lengths, self.max_tokens_per_batch)
        self.num_images = np.zeros_like(self.lengths) if self.num_images is None else np.asarray(self.num_images)
        self.made_for = (self.batch_size, self.world_size)
        self.cost_weights = BY_TOKENS
        self._start = 0
        self._steps: dict[int, int] = {}

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of the first epoch, the filled last one included; of all where samples are counted."""
        return self._steps_of(0)

    def steps_in(self, epochs: float) -> int:
        """Optimizer steps of so many epochs, filled last ones included; of a part of an epoch rounded up."""
        whole = int(epochs)
        if self.max_tokens_per_batch is None:
            steps = whole * self._steps_of(0)
        else:
            steps = sum(self._steps_of(epoch) for epoch in range(whole))
        # the tiny subtraction keeps 0.1 * 30 = 3.0000000000000004 at 3 steps
        return steps + (math.ceil((epochs - whole) * self._steps_of(whole) - 1e-9) if epochs > whole else 0)

    def epoch_at(self, step: int) -> tuple[int, int]:
        """Returns the epoch in which optimizer step `step` (from 0, over all epochs) stands, and its number there."""
        if self.max_tokens_per_batch is None:
            return divmod(step, self._steps_of(0))
        epoch = 0
        while step >= self._steps_of(epoch):
            step -= self._steps_of(epoch)
            epoch += 1
        return epoch, step

    def _steps_of(self, epoch: int) -> int:
        """Steps of an epoch: the same for all where samples are counted, not where their tokens are."""
        if self.max_tokens_per_batch is None:
            return -(-self.mixture.size // (self.batch_size * self.grad_accum * self.world_size))
        if epoch not in self._steps:
            self._steps[epoch] = self._rows(epoch).shape[0]
        return self._steps[epoch]

    def order_facts(self) -> dict[str, Any]:
        """Returns what the order of samples depends on, for checkpoints: `made_for`, `cost_weights`, and what must be
        the same for the order to go on: seed, number of samples, and a checksum of the rest.
        """
        checksum = 0
        for values in (self.lengths, *self._order_inputs()):
            checksum = zlib.crc32(np.ascontiguousarray(values).tobytes(), checksum)
        return {
            "made_for": list(self.made_for),
            "cost_weights": list(self.cost_weights),
            "seed": self.seed,
            "samples": len(self.lengths),
            "checksum": checksum,
        }

    def _order_inputs(self) -> list[np.ndarray]:
        """What the order depends on beside lengths, seed and `made_for`."""
        name = np.frombuffer(type(self).__name__.encode(), np.uint8)
        return [name, np.asarray([self.max_tokens_per_batch or 0]), *self.mixture.order_inputs()]

    def balance(self, weights: CostWeights) -> None:
        """Makes micro-batches of the same cost by `weights`, rather than of as many tokens, go together."""
        self.cost_weights = weights

    def continue_order(self, facts: Mapping[str, Any]) -> None:
        """Takes up the order of `order_facts`, made for another micro-batch, number of processes, or other costs;
        it has as many samples a step.
        """
        self.made_for = (facts["made_for"][0], facts["made_for"][1])
        # not recorded by versions that balanced by tokens
        self.cost_weights = CostWeights(*facts.get("cost_weights", BY_TOKENS))
        self._steps.clear()

    def took(self, micro_batches: Sequence[Any]) -> None:
        """Does nothing: the step alone says which samples come next."""

    def place(self) -> None:
        """Returns None: see `took`."""

    def continue_at(self, place: None) -> None:
        """Does nothing: see `took`."""

    def set_start(self, step: int) -> None:
        """Makes the next iteration begin with optimizer step `step` (from 0, counted over all epochs)."""
        if step < 0:
            raise XTunerError(f"training cannot start at step {step}: expected 0 or more.")
        self._start = step

    def __iter__(self) -> Iterator[list[int]]:
        epoch, skipped = self.epoch_at(self._start)
        while True:
            yield from self._micro_batches(epoch, skipped)
            epoch, skipped = epoch + 1, 0

    def _micro_batches(self, epoch: int, skipped: int) -> Iterator[list[int]]:
        """This rank's micro-batches of an epoch, from its step `skipped` on."""
        if self.max_tokens_per_batch is None:
            steps = self.epoch_order(epoch).reshape(-1, self.grad_accum, self.world_size, self.batch_size)
            for micro_batches in steps[skipped:, :, self.rank]:
                yield from micro_batches.tolist()
            return
        order = self.epoch_order(epoch)
        for start, end in self._rows(epoch, order)[skipped:, :, self.rank].reshape(-1, 2):
            yield order[start:end].tolist()

    def _rows(self, epoch: int, order: np.ndarray | None = None) -> np.ndarray:
        """(steps, grad_accum, world_size, 2) start and end of each micro-batch in the order of `epoch`."""
        assert self.max_tokens_per_batch is not None
        order = self.epoch_order(epoch) if order is None else order
        rows = cut_by_tokens(self.lengths[order], self.max_tokens_per_batch)
        generator = np.random.default_rng([self.seed, epoch, 1])
        _, at_a_time = self.made_for
        costs = self.cost_weights.of(self.lengths[order], self.num_images[order])
        return arrange_rows(rows, costs, self.grad_accum, self.world_size, generator, at_a_time)

    def check_step(self) -> None:
        """Refuses a step that would see samples twice.

        Raises:
            XTunerError: a step takes more samples, or rows of tokens, than an epoch has.
        """
        rows = self.max_tokens_per_batch is not None
        each = 1 if rows else self.batch_size
        needed = each * self.grad_accum * self.world_size
        found = self.mixture.size
        if rows:
            order = self.epoch_order(0)
            found = len(cut_by_tokens(self.lengths[order], int(self.max_tokens_per_batch or 0)))
        if needed > found:
            what, size = ("rows", "max_tokens_per_batch") if rows else ("samples", "batch_size")
            pieces = f"accumulative_counts {self.grad_accum} x {self.world_size} processes"
            pieces = pieces if rows else f"batch_size {each} x {pieces}"
            raise XTunerError(
                f"an optimizer step takes {needed} {what} ({pieces}), but the training data holds {found}: every step "
                f"would use some of them twice; lower {size} or accumulative_counts, or start fewer processes."
            )

    def epoch_order(self, epoch: int) -> np.ndarray:
        """Returns the samples of `epoch` in order: (steps, grad_accum, world_size, batch_size), flattened.

        With `max_tokens_per_batch` they are not filled up to whole steps.
        """
        return self._filled(self._generator(epoch))

    def _generator(self, epoch: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, epoch])

    def _filled(self, generator: np.random.Generator) -> np.ndarray:
        """A random order of all samples of an epoch, filled up to whole steps from its own start."""
        order = generator.permutation(self.mixture.samples(generator))
        if self.max_tokens_per_batch is not None:
            return order
        return np.resize(order, self._steps_of(0) * self.batch_size * self.grad_accum * self.world_size)


@dataclass(eq=False)
class LengthGroupedBatchSampler(ShuffledBatchSampler):
    """Like `ShuffledBatchSampler`, but what is computed together is of similar length.

    The random order is cut into megabatches; each is sorted by length and cut into chunks of one
    micro-batch per rank, whose order is then shuffled over the whole epoch. So padding is small, all ranks
    have similar work at a time, and long samples come at any time.

    Args:
        lengths: true length of each sample: text, image and box tokens.
        (others): as of `ShuffledBatchSampler`.
        megabatch_chunks: chunks that are sorted together; more = less padding, less random company.
        groups: a number per sample; only samples of one group share a chunk (say, text only = 0, with
            picture = 1), but for what is left over of each group. None: all may meet.
    """

    provided_by_parent: ClassVar[tuple[str, ...]] = (*ShuffledBatchSampler.provided_by_parent, "groups")

    megabatch_chunks: int = 64
    groups: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.megabatch_chunks < 1:
            raise XTunerError(f"megabatch_chunks must be at least 1, found {self.megabatch_chunks}.")
        groups = np.zeros(len(self.lengths), dtype=np.int64) if self.groups is None else np.asarray(self.groups)
        if len(groups) != len(self.lengths):
            raise XTunerError(
                f"groups must name one group per sample: found {len(groups)} for a data set of {len(self.lengths)}."
            )
        self.groups = groups

    def epoch_order(self, epoch: int) -> np.ndarray:
        """As in `ShuffledBatchSampler`; with `max_tokens_per_batch` similar lengths just follow each other."""
        generator = self._generator(epoch)
        filled = self._filled(generator)
        if self.max_tokens_per_batch is not None:
            members = (filled[self.groups[filled] == group] for group in np.unique(self.groups))
            return np.concatenate([self._sorted(part) for part in members])
        chunk = math.prod(self.made_for)
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

    def _order_inputs(self) -> list[np.ndarray]:
        return [*super()._order_inputs(), np.asarray([self.megabatch_chunks]), self.groups]

    def _sorted(self, samples: np.ndarray) -> np.ndarray:
        """Sorts each megabatch by length; equally long samples keep their random order."""
        megabatch = np.arange(len(samples)) // (self.megabatch_chunks * math.prod(self.made_for))
        return samples[np.lexsort((self.lengths[samples], megabatch))]
