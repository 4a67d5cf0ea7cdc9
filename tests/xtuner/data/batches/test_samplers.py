from __future__ import annotations

from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from xtuner.data.batches.samplers import LengthGroupedBatchSampler, ShuffledBatchSampler
from xtuner.errors import XTunerError
from xtuner.model.flops import CostWeights

SAMPLERS = (ShuffledBatchSampler, LengthGroupedBatchSampler)

shapes = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(SAMPLERS),
        "size": st.integers(1, 90),
        "batch_size": st.integers(1, 5),
        "grad_accum": st.integers(1, 3),
        "world_size": st.integers(1, 4),
        "seed": st.integers(0, 3),
    }
)


def lengths_of(size: int) -> np.ndarray:
    return np.random.default_rng(7).integers(10, 900, size)


def ranks(shape: dict) -> list[ShuffledBatchSampler]:
    common = {key: shape[key] for key in ("batch_size", "grad_accum", "world_size", "seed")}
    return [shape["kind"](lengths_of(shape["size"]), rank=rank, **common) for rank in range(shape["world_size"])]


@settings(max_examples=60, deadline=None)
@given(shape=shapes, epoch=st.integers(0, 2))
def test_an_epoch_is_shared_out_without_loss(shape: dict, epoch: int) -> None:
    samplers = ranks(shape)
    micro_batches = samplers[0].steps_per_epoch * shape["grad_accum"]
    seen: Counter[int] = Counter()
    for sampler in samplers:
        sampler.set_start(epoch * sampler.steps_per_epoch)
        for batch in islice(sampler, micro_batches):
            assert len(batch) == shape["batch_size"]
            seen.update(batch)
    assert set(seen) == set(range(shape["size"]))
    per_step = shape["batch_size"] * shape["grad_accum"] * shape["world_size"]
    # the last step is filled by wrapping: what comes again is less than one step, spread evenly
    assert sum(seen.values()) - shape["size"] < per_step
    assert max(seen.values()) - min(seen.values()) <= 1


@settings(max_examples=60, deadline=None)
@given(shape=shapes, step=st.integers(0, 60))
def test_set_start_equals_skipping(shape: dict, step: int) -> None:
    fresh, started = ranks(shape)[-1], ranks(shape)[-1]
    started.set_start(step)
    skipped = islice(fresh, step * shape["grad_accum"], None)
    assert list(islice(started, 20)) == list(islice(skipped, 20))


@pytest.mark.parametrize("kind", SAMPLERS)
class TestOrder:
    def test_same_for_a_seed_other_each_epoch(self, kind: type[ShuffledBatchSampler]) -> None:
        one, two, other = (kind(lengths_of(200), batch_size=4, seed=seed) for seed in (1, 1, 2))
        assert np.array_equal(one.epoch_order(3), two.epoch_order(3))
        assert not np.array_equal(one.epoch_order(3), one.epoch_order(4))
        assert not np.array_equal(one.epoch_order(3), other.epoch_order(3))

    def test_workers_do_not_change_it(self, kind: type[ShuffledBatchSampler]) -> None:
        orders = []
        for workers in (0, 2):
            loader = DataLoader(
                list(range(30)),
                batch_sampler=kind(lengths_of(30), batch_size=4),
                num_workers=workers,
                collate_fn=list,
            )
            orders.append(list(islice(loader, 12)))
        assert orders[0] == orders[1]

    def test_faults(self, kind: type[ShuffledBatchSampler]) -> None:
        with pytest.raises(XTunerError, match="no samples"):
            kind([], batch_size=1)
        with pytest.raises(XTunerError, match="must be at least 1"):
            kind([1], batch_size=0)
        with pytest.raises(XTunerError, match="rank 2"):
            kind([1], batch_size=1, rank=2, world_size=2)
        with pytest.raises(XTunerError, match="step -1"):
            kind([1], batch_size=1).set_start(-1)


@pytest.mark.parametrize("tokens", [None, 2000])
@pytest.mark.parametrize("kind", SAMPLERS)
class TestGoingOn:
    """A checkpoint's order with another number of processes, and what makes it another order."""

    SHAPES = (dict(batch_size=2, grad_accum=3, world_size=4), dict(batch_size=4, grad_accum=6, world_size=1))

    def steps(self, samplers: list[ShuffledBatchSampler], start: int, count: int) -> list[list[int]]:
        """Samples of each step, of all ranks."""
        each = []
        for sampler in samplers:
            sampler.set_start(start)
            each.append(list(islice(sampler, count * sampler.grad_accum)))
        parts = [
            [batches[i : i + samplers[0].grad_accum] for batches in each]
            for i in range(0, len(each[0]), samplers[0].grad_accum)
        ]
        return [sorted(n for rank in step for batch in rank for n in batch) for step in parts]

    def test_steps_hold_the_same_samples(self, kind: type[ShuffledBatchSampler], tokens: int | None) -> None:
        many, one = self.SHAPES if tokens is None else (self.SHAPES[0], dict(batch_size=4, grad_accum=12, world_size=1))
        lengths = lengths_of(500)
        common = dict(seed=3, max_tokens_per_batch=tokens)
        before = [kind(lengths, rank=rank, **many, **common) for rank in range(4)]
        after = kind(lengths, **one, **common)
        assert after.order_facts() != before[0].order_facts()
        after.continue_order(before[0].order_facts())
        assert after.order_facts() == before[0].order_facts()
        count = before[0].steps_per_epoch + 3
        assert self.steps([after], 2, count) == self.steps(before, 2, count)

    def test_another_order_shows(self, kind: type[ShuffledBatchSampler], tokens: int | None) -> None:
        lengths = lengths_of(50)
        facts = kind(lengths, batch_size=2, max_tokens_per_batch=tokens).order_facts()
        longer = np.append(lengths[:-1], lengths[-1] + 1)
        sources = np.arange(50) % 2
        others = [
            kind(lengths, batch_size=2, max_tokens_per_batch=tokens, seed=1),
            kind(lengths[1:], batch_size=2, max_tokens_per_batch=tokens),
            kind(longer, batch_size=2, max_tokens_per_batch=tokens),
            kind(lengths, batch_size=2, max_tokens_per_batch=3000),
            kind(lengths, batch_size=2, max_tokens_per_batch=tokens, source_of=sources, repeats=(1.0, 2.0)),
        ]
        assert all(other.order_facts() != facts for other in others)
        assert kind(lengths, batch_size=2, rank=0, max_tokens_per_batch=tokens).order_facts() == facts


def padding_share(sampler: ShuffledBatchSampler) -> float:
    longest = sampler.lengths[sampler.epoch_order(0).reshape(-1, sampler.batch_size)]
    return 1 - longest.sum() / (longest.max(axis=1, keepdims=True).repeat(sampler.batch_size, 1)).sum()


class TestBalance:
    WEIGHTS = CostWeights(token=1.0, picture=5000.0, pair=0.01)

    def samplers(self, ranks: int = 8) -> list[ShuffledBatchSampler]:
        draw = np.random.default_rng(0)
        lengths, num_images = draw.integers(100, 900, 4000), draw.integers(0, 3, 4000)
        common = dict(world_size=ranks, max_tokens_per_batch=3000, num_images=num_images)
        return [ShuffledBatchSampler(lengths, 4, rank=rank, **common) for rank in range(ranks)]

    def waiting(self, samplers: list[ShuffledBatchSampler]) -> float:
        costs = self.WEIGHTS.of(samplers[0].lengths, samplers[0].num_images)
        rows = [list(islice(one, one.steps_per_epoch)) for one in samplers]
        seconds = np.array([[costs[row].sum() for row in of_rank] for of_rank in rows])
        assert sorted(n for of_rank in rows for row in of_rank for n in row)[0] == 0
        return float(1 - seconds.mean() / seconds.max(axis=0).mean())

    def test_ranks_wait_less_when_cost_is_known(self) -> None:
        by_tokens, by_cost = self.samplers(), self.samplers()
        for sampler in by_cost:
            sampler.balance(self.WEIGHTS)
        assert self.waiting(by_tokens) > 0.1
        assert self.waiting(by_cost) < 0.01

    def test_an_epoch_sees_the_same_samples(self) -> None:
        before, after = self.samplers(1)[0], self.samplers(1)[0]
        after.balance(self.WEIGHTS)
        rows = [list(islice(one, one.steps_per_epoch)) for one in (before, after)]
        assert rows[0] != rows[1]
        assert sorted(map(tuple, rows[0])) == sorted(map(tuple, rows[1]))

    def test_a_checkpoint_goes_on_with_its_own_costs(self) -> None:
        saved, going_on = self.samplers(1)[0], self.samplers(1)[0]
        saved.balance(self.WEIGHTS)
        going_on.balance(CostWeights(1.0, 1.0, 1.0))
        going_on.continue_order(saved.order_facts())
        assert list(islice(going_on, 50)) == list(islice(saved, 50))
        assert going_on.order_facts() == saved.order_facts()

    def test_a_checkpoint_of_before_goes_on_by_tokens(self) -> None:
        saved, going_on = self.samplers(1)[0], self.samplers(1)[0]
        facts = {name: fact for name, fact in saved.order_facts().items() if name != "cost_weights"}
        going_on.balance(self.WEIGHTS)
        going_on.continue_order(facts)
        assert list(islice(going_on, 50)) == list(islice(saved, 50))


class TestStepLargerThanTheData:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (
                dict(batch_size=1, world_size=4),
                r"4 samples \(batch_size 1 x accumulative_counts 1 x 4 processes\), .* 3",
            ),
            (dict(batch_size=2, grad_accum=2), r"4 samples \(batch_size 2 x accumulative_counts 2 x 1 processes\)"),
            (
                dict(batch_size=2, max_tokens_per_batch=20, world_size=3),
                r"3 rows \(accumulative_counts 1 x 3 processes\), but the .* holds 2: .*max_tokens_per_batch",
            ),
        ],
    )
    def test_is_refused(self, changes: dict[str, int], message: str) -> None:
        with pytest.raises(XTunerError, match=message):
            ShuffledBatchSampler([10, 10, 10], **changes).check_step()

    def test_as_large_is_not(self) -> None:
        ShuffledBatchSampler([10, 10, 10], batch_size=1, world_size=3).check_step()
        ShuffledBatchSampler([10, 10, 10], batch_size=1, world_size=2, max_tokens_per_batch=20).check_step()
        # seen three times an epoch
        ShuffledBatchSampler([10], batch_size=3, repeats=(3.0,)).check_step()


class TestGrouping:
    def test_padding_is_small(self) -> None:
        lengths = lengths_of(20_000)
        shuffled = ShuffledBatchSampler(lengths, batch_size=16, world_size=8)
        grouped = LengthGroupedBatchSampler(lengths, batch_size=16, world_size=8)
        # measured: 0.47 shuffled, 0.01 grouped
        assert padding_share(shuffled) > 0.4
        assert padding_share(grouped) < 0.03

    def test_long_and_short_batches_alternate(self) -> None:
        sampler = LengthGroupedBatchSampler(lengths_of(20_000), batch_size=16)
        means = sampler.lengths[sampler.epoch_order(0).reshape(-1, 16)].mean(axis=1)
        # sorted chunks would be correlated by almost 1
        assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.15

    def test_groups_meet_only_in_what_is_left_over(self) -> None:
        groups = np.random.default_rng(0).integers(0, 2, 1000)
        sampler = LengthGroupedBatchSampler(lengths_of(1000), batch_size=4, world_size=2, groups=groups)
        of_chunks = groups[sampler.epoch_order(0).reshape(-1, 8)]
        assert sum(len(set(chunk)) > 1 for chunk in of_chunks.tolist()) <= 2

    def test_faults(self) -> None:
        with pytest.raises(XTunerError, match="one group per sample: found 1 for a data set of 2"):
            LengthGroupedBatchSampler([1, 2], batch_size=1, groups=[0])
        with pytest.raises(XTunerError, match="megabatch_chunks"):
            LengthGroupedBatchSampler([1, 2], batch_size=1, megabatch_chunks=0)
