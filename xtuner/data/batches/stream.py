"""Order of a stream: shards and blocks of records shuffled by the seed, micro-batches cut as they come, and places.

A stream is read by several parts side by side (ranks and their loaders' workers). Each has shards of its own, in an
order drawn from seed and epoch. It reads a block of records, draws their order, and cuts micro-batches from it; a place
is the block's beginning and how much of it was used, so that a run goes on at exactly the next sample.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from xtuner.data.batches.bad_samples import BadSample
from xtuner.errors import XTunerError

Item = TypeVar("Item")
_MOST_BAD = 1000
"""Faulty samples in a row that end a run."""
_MOST_LEFT_OUT = 100_000
"""Records in a row that teach nothing, and end a run."""


class Place(NamedTuple):
    """Where a part of a stream stands.

    Attributes:
        epoch: passes over its shards that are done.
        shard: number in its order of shards.
        record: number in the shard of the first record of the block.
        used: samples of the block that are done.
    """

    epoch: int = 0
    shard: int = 0
    record: int = 0
    used: int = 0


class Streamed(NamedTuple):
    """A sample of a stream: its length in tokens, and what makes it, which may find it bad."""

    tokens: int
    make: Callable[[], Any]


class Shards(Protocol):
    """What is read from beginning to end."""

    def __len__(self) -> int: ...

    def read(self, shard: int, start: int = 0) -> Iterator[Any]:
        """Yields what a shard holds from `start` on."""
        ...


@dataclass(frozen=True)
class StreamPart:
    """One of the parts that read a stream side by side.

    Args:
        shards: of the stream.
        number: of this part, in [0, parts).
        parts: that share the stream. Where there are fewer shards than parts, each reads all and takes every
            `parts`-th record.
        buffer: records of a block.
        seed: of the order.
    """

    shards: Shards
    number: int
    parts: int
    buffer: int
    seed: int

    def blocks(self, place: Place) -> Iterator[tuple[Place, list[Any]]]:
        """Yields blocks of records without end, with the place where each begins; the first begins at `place`.

        Raises:
            XTunerError: an epoch holds no record.
        """
        while True:
            found = 0
            block: list[Any] = []
            start = place._replace(used=0)
            order = np.random.default_rng([self.seed, place.epoch]).permutation(len(self.shards)).tolist()
            own_shards = len(order) >= self.parts
            mine = order[self.number :: self.parts] if own_shards else order
            for number in range(place.shard, len(mine)):
                first = place.record if number == place.shard else 0
                for record, item in enumerate(self.shards.read(mine[number], first), start=first):
                    if own_shards or record % self.parts == self.number:
                        block.append(item)
                    if len(block) == self.buffer:
                        yield start, block
                        found, block = found + len(block), []
                        start = Place(place.epoch, number, record + 1)
            if block:
                yield start, block
            if not (found or block) and not (place.shard or place.record):
                raise XTunerError("a part of the stream holds no record: check data_path, or use fewer workers.")
            place = Place(place.epoch + 1)

    def micro_batches(
        self,
        place: Place,
        encode: Callable[[Sequence[Any]], tuple[list[Streamed], list[BadSample]]],
        batch_size: int,
        max_tokens: int | None,
        judge: Callable[[Exception], BadSample],
    ) -> Iterator[tuple[list[Any], list[BadSample], Place]]:
        """Yields the samples of micro-batches, what was bad since the last one, and the place behind it.

        Args:
            place: where to begin.
            encode: makes the samples of a block, in its order, and says which records are bad.
            batch_size: samples of a micro-batch.
            max_tokens: most tokens of a micro-batch, instead of `batch_size`.
            judge: says what is wrong with a sample that cannot be made; raises where none may be bad.

        Raises:
            XTunerError: very many samples in a row are bad, or a whole epoch gives none.
        """
        samples: list[Any] = []
        bad: list[BadSample] = []
        total = 0
        # the epoch in which the last sample was found, or the reading began
        fruitful = place.epoch
        for start, block in self.blocks(place):
            if start.epoch > fruitful + 1:
                raise XTunerError(f"a whole pass over a part of the stream gives no sample{_last(bad)}")
            streamed, faults = encode(block)
            fruitful = start.epoch if streamed else fruitful
            bad += faults
            _check_bad(bad)
            order = np.random.default_rng([self.seed, *start[:3], self.number]).permutation(len(streamed)).tolist()
            for used in range(place.used, len(order)):
                one = streamed[order[used]]
                if max_tokens is not None and samples and total + one.tokens > max_tokens:
                    yield samples, bad, start._replace(used=used)
                    samples, bad, total = [], [], 0
                try:
                    if max_tokens is not None and one.tokens > max_tokens:
                        raise XTunerError(
                            f"it has {one.tokens:,} tokens, more than max_tokens_per_batch={max_tokens:,}."
                        )
                    samples.append(one.make())
                    total += one.tokens
                except Exception as error:  # whatever is wrong with one sample, the others can be trained on
                    bad.append(judge(error))
                    _check_bad(bad)
                if max_tokens is None and len(samples) == batch_size:
                    yield samples, bad, start._replace(used=used + 1)
                    samples, bad = [], []
            place = place._replace(used=0)


def _check_bad(bad: Sequence[BadSample]) -> None:
    """Ends a run whose stream gives nothing but samples that are left out: it would read for ever."""
    faults = [one for one in bad if one.is_fault]
    if len(faults) > _MOST_BAD:
        raise XTunerError(f"{len(faults):,} samples cannot be read and none can, the last: {faults[-1].message}")
    if len(bad) - len(faults) > _MOST_LEFT_OUT:
        raise XTunerError(f"{len(bad):,} records in a row give no sample{_last(bad)}")


def _last(bad: Sequence[BadSample]) -> str:
    return f", the last: {bad[-1].message}" if bad else "."


@dataclass(eq=False)
class StreamOrder:
    """What a run knows of the order of a stream: stands where the samplers of prepared data stand.

    Args:
        name: of the stream, by which a run that goes on knows it.
        num_shards: of the stream.
        buffer: records of a block.
        batch_size: samples of a micro-batch.
        grad_accum: micro-batches of one rank per optimizer step.
        rank: this process.
        world_size: number of processes.
        seed: of the order.
        workers: parts that read this rank's share.
        max_tokens_per_batch: see `ShuffledBatchSampler`.

    Attributes:
        places: where each worker's part stands behind the micro-batches that were taken.
        next_worker: whose micro-batch comes next.
    """

    name: str
    num_shards: int
    buffer: int
    batch_size: int
    grad_accum: int = 1
    rank: int = 0
    world_size: int = 1
    seed: int = 0
    workers: int = 1
    max_tokens_per_batch: int | None = None

    def __post_init__(self) -> None:
        if min(self.batch_size, self.grad_accum, self.buffer) < 1:
            raise XTunerError(
                "batch_size, accumulative_counts and the stream's buffer must be at least 1; found "
                f"{self.batch_size}, {self.grad_accum}, {self.buffer}."
            )
        self.places = [Place()] * self.workers
        self.next_worker = 0

    def __str__(self) -> str:
        return f"a stream of {self.num_shards:,} shards"

    def steps_in(self, epochs: float) -> int:
        """Refuses to say: nobody knows how many samples a stream has.

        Raises:
            XTunerError: always.
        """
        raise XTunerError(
            f"{self} has no known length, so max_epochs={epochs:g} says nothing: set max_iters to the optimizer steps "
            "of the run."
        )

    def epoch_at(self, step: int) -> tuple[int, int]:
        """Returns the passes over the stream that are done by all workers of this rank, and the step."""
        return min(place.epoch for place in self.places), step

    def set_start(self, step: int) -> None:
        """Does nothing: `continue_at` says where a run goes on."""

    def balance(self, weights: Any) -> None:
        """Does nothing: samples are trained on as they come, so ranks wait for the longest of a step."""

    def check_step(self) -> None:
        """Does nothing: a stream has no end that a step could pass."""

    def took(self, micro_batches: Sequence[Any]) -> None:
        """Takes note of micro-batches that are trained on now."""
        for micro_batch in micro_batches:
            worker, place = micro_batch["stream_place"]
            self.places[worker] = Place(*place)
            self.next_worker = (worker + 1) % self.workers

    def order_facts(self) -> dict[str, Any]:
        """Returns what the order depends on, for checkpoints; see `ShuffledBatchSampler.order_facts`."""
        facts = (self.name, self.buffer, self.workers, self.max_tokens_per_batch)
        return {
            "made_for": [self.batch_size, self.world_size],
            "seed": self.seed,
            "samples": str(self),
            "checksum": zlib.crc32(repr(facts).encode()),
        }

    def continue_order(self, order: Mapping[str, Any]) -> None:
        """Refuses an order (`order_facts`) made for another number of processes or another micro-batch.

        Raises:
            XTunerError: it was.
        """
        made_for = order["made_for"]
        if list(made_for) != [self.batch_size, self.world_size]:
            raise XTunerError(
                f"the checkpoint's stream was read by {made_for[1]} processes in micro-batches of {made_for[0]}, this "
                f"run has {self.world_size} and {self.batch_size}: a stream goes on with the same ones only."
            )

    def place(self) -> dict[str, Any]:
        """Returns where this rank's share stands, for checkpoints."""
        return {"places": [list(place) for place in self.places], "next_worker": self.next_worker}

    def continue_at(self, place: dict[str, Any] | None) -> None:
        """Goes on at a place that `place` gave.

        Raises:
            XTunerError: there is none, or it is of another number of workers.
        """
        if place is None or len(place["places"]) != self.workers:
            found = "no place" if place is None else f"the places of {len(place['places'])} workers"
            raise XTunerError(
                f"the checkpoint holds {found} of a stream, this run has {self.workers}: resume with the same "
                "dataloader_num_workers."
            )
        self.places = [Place(*values) for values in place["places"]]
        self.next_worker = place["next_worker"]
