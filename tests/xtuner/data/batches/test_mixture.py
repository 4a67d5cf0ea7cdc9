"""Epochs of several sources, and micro-batches by tokens."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xtuner.data.batches.mixture import Mixture
from xtuner.data.batches.samplers import LengthGroupedBatchSampler, ShuffledBatchSampler
from xtuner.data.store.token_rows import cut_by_tokens
from xtuner.errors import XTunerError

KINDS = (ShuffledBatchSampler, LengthGroupedBatchSampler)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=3),
    repeats=st.lists(st.sampled_from([0.25, 0.5, 1, 1.5, 2, 3]), min_size=3, max_size=3),
    seed=st.integers(0, 5),
)
def test_each_source_comes_as_often_as_asked(sizes: list[int], repeats: list[float], seed: int) -> None:
    source_of = np.repeat(np.arange(len(sizes)), sizes)
    mixture = Mixture(len(source_of), source_of, repeats[: len(sizes)])
    samples = mixture.samples(np.random.default_rng(seed))
    assert len(samples) == mixture.size
    seen = Counter(samples.tolist())
    for number, (size, times) in enumerate(zip(sizes, repeats, strict=False)):
        counts = [seen[index] for index in np.flatnonzero(source_of == number).tolist()]
        assert all(int(times) <= count <= int(times) + 1 for count in counts)
        assert sum(counts) == int(times) * size + round((times - int(times)) * size) or mixture.size == 1


def test_fractions_are_drawn_anew_each_epoch() -> None:
    sampler = ShuffledBatchSampler(np.ones(100), batch_size=50, source_of=np.zeros(100, int), repeats=(0.5,))
    first, second = (set(sampler.epoch_order(epoch).tolist()) for epoch in range(2))
    assert len(first) == len(second) == 50 and first != second
    assert sampler.steps_per_epoch == 1


shapes = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(KINDS),
        "size": st.integers(1, 90),
        "grad_accum": st.integers(1, 3),
        "world_size": st.integers(1, 4),
        "seed": st.integers(0, 3),
    }
)


def ranks(shape: dict) -> list[ShuffledBatchSampler]:
    lengths = np.random.default_rng(7).integers(10, 900, shape["size"])
    common = {key: shape[key] for key in ("grad_accum", "world_size", "seed")}
    return [
        shape["kind"](lengths, batch_size=1, rank=rank, max_tokens_per_batch=2000, **common)
        for rank in range(shape["world_size"])
    ]


@settings(max_examples=60, deadline=None)
@given(shape=shapes, epoch=st.integers(0, 2))
def test_rows_share_an_epoch_out_without_loss(shape: dict, epoch: int) -> None:
    samplers = ranks(shape)
    start = samplers[0].steps_in(epoch)
    steps = samplers[0].steps_in(epoch + 1) - start
    rows: list[tuple[int, ...]] = []
    for sampler in samplers:
        assert sampler.steps_in(epoch) == start
        assert sampler.epoch_at(start) == (epoch, 0)
        sampler.set_start(start)
        for row in islice(sampler, steps * shape["grad_accum"]):
            assert sampler.lengths[row].sum() <= 2000
            rows.append(tuple(row))
    distinct = Counter(rows)
    seen = Counter(index for row in distinct for index in row)
    # rows come again only to fill the last step
    assert seen == Counter(range(shape["size"]))
    assert len(rows) - len(distinct) < shape["grad_accum"] * shape["world_size"] or len(distinct) == 1


@settings(max_examples=40, deadline=None)
@given(shape=shapes, step=st.integers(0, 60))
def test_set_start_equals_skipping(shape: dict, step: int) -> None:
    fresh, started = ranks(shape)[-1], ranks(shape)[-1]
    started.set_start(step)
    assert list(islice(started, 20)) == list(islice(islice(fresh, step * shape["grad_accum"], None), 20))


def test_rows_are_full_and_even() -> None:
    lengths = np.random.default_rng(0).integers(100, 1500, 20_000)
    samplers = [ShuffledBatchSampler(lengths, 1, rank=r, world_size=4, max_tokens_per_batch=16_000) for r in range(4)]
    tokens = np.array([[lengths[row].sum() for row in islice(s, s.steps_per_epoch)] for s in samplers])
    assert tokens.mean() > 0.93 * 16_000
    # without arranging, ranks would differ by some 5 %
    assert 1 - tokens.mean() / tokens.max(axis=0).mean() < 0.005
    other = list(islice(samplers[0], samplers[0].steps_per_epoch, samplers[0].steps_per_epoch + 3))
    assert other != list(islice(samplers[0], 3))


def test_parts_of_epochs_and_faults() -> None:
    sampler = ShuffledBatchSampler(np.full(10, 5), batch_size=2)
    assert [sampler.steps_in(epochs) for epochs in (1, 2.5, 0.1)] == [5, 13, 1]
    assert cut_by_tokens(np.array([3, 3, 5, 1, 9]), 9).tolist() == [[0, 2], [2, 4], [4, 5]]
    with pytest.raises(XTunerError, match="max_tokens_per_batch=4, but 10 of 10 samples .* longest has 5"):
        ShuffledBatchSampler(np.full(10, 5), batch_size=2, max_tokens_per_batch=4)
