from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.xtuner.engine.toy import ToyDataset, ToyModel
from xtuner.constants import IGNORE_INDEX
from xtuner.engine.processes.environment import Collective
from xtuner.engine.steps.optim import build_optimizer
from xtuner.engine.steps.step import check_counts, count_supervised, run_step
from xtuner.engine.strategies.plain import PlainBackend
from xtuner.errors import XTunerError

CPU = torch.device("cpu")


def toy_backend(**settings: Any) -> PlainBackend:
    torch.manual_seed(0)
    model = ToyModel()
    return PlainBackend(model, build_optimizer(model, CPU, lr=1e-2, **settings), CPU)


def batches(*groups: list[int]) -> list[dict[str, torch.Tensor]]:
    data = ToyDataset()
    return [data.collate_fn([data[i] for i in group]) for group in groups]


def test_first_column_is_never_predicted() -> None:
    labels = torch.tensor([[5, 5, IGNORE_INDEX], [IGNORE_INDEX, 5, 5]])
    assert count_supervised({"labels": labels}) == 3


class TestRunStep:
    def test_micro_batches_equal_the_joined_batch(self) -> None:
        # lengths differ, so a mean of means would differ: tokens are what counts
        split, joined = toy_backend(), toy_backend()
        first = run_step(split, batches([0, 1], [2], [3, 4, 5]), Collective())
        second = run_step(joined, batches([0, 1, 2, 3, 4, 5]), Collective())
        assert first.loss_count == second.loss_count == first.counted == first.expected
        assert first.loss_sum.item() == pytest.approx(second.loss_sum.item(), rel=1e-6)
        assert float(first.grad_norm) == pytest.approx(float(second.grad_norm), rel=1e-5)
        for ours, theirs in zip(split.module.parameters(), joined.module.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)

    def test_counts_padding(self) -> None:
        result = run_step(toy_backend(), batches([0, 1]), Collective())
        assert (result.num_tokens.item(), result.num_positions, result.num_samples) == (4 + 11, 22, 2)

    def test_step_without_supervised_tokens_changes_nothing(self) -> None:
        backend = toy_backend()
        (batch,) = batches([0])
        batch["labels"].fill_(IGNORE_INDEX)
        before = [p.clone() for p in backend.module.parameters()]
        assert run_step(backend, [batch], Collective()).loss_count == 0
        assert all(torch.equal(p, q) for p, q in zip(backend.module.parameters(), before, strict=True))

    def test_bf16_on_the_cpu_is_near_fp32(self) -> None:
        results = [run_step(toy_backend(precision=name), batches([0, 1]), Collective()) for name in ("bf16", "fp32")]
        losses = [result.loss_sum.item() / result.loss_count for result in results]
        assert losses[0] == pytest.approx(losses[1], rel=1e-2)  # bf16 keeps 8 bits
        assert losses[0] != losses[1]

    def test_votes_are_counted(self) -> None:
        votes = {"stop": True, "written": False}
        assert run_step(toy_backend(), batches([0]), Collective(), votes).votes == {"stop": 1, "written": 0}


def test_miscounting_model_is_found() -> None:
    check_counts(4, 4)
    with pytest.raises(XTunerError, match="reports 3 supervised tokens, but the labels of the batches hold 4"):
        check_counts(3, 4)


class TestLossMean:
    def test_plain_mean_over_micro_batches(self) -> None:
        parts = batches([0, 1], [2], [3, 4, 5])
        means = []
        for part in parts:
            alone = run_step(toy_backend(), [part], Collective())
            means.append(alone.loss_sum.item() / alone.loss_count)
        result = run_step(toy_backend(), parts, Collective(), mean="micro_batch")
        assert result.loss_count == 3
        assert result.loss_sum.item() / 3 == pytest.approx(sum(means) / 3, rel=1e-6)
        # the gradient is that of the same mean
        by_tokens, plain = toy_backend(), toy_backend()
        run_step(by_tokens, parts, Collective())
        run_step(plain, parts, Collective(), mean="micro_batch")
        pairs = zip(by_tokens.module.head.parameters(), plain.module.head.parameters(), strict=True)
        assert any(not torch.equal(one, other) for one, other in pairs)

    def test_one_micro_batch_is_the_same_either_way(self) -> None:
        first, second = toy_backend(), toy_backend()
        a = run_step(first, batches([0, 1, 2]), Collective())
        b = run_step(second, batches([0, 1, 2]), Collective(), mean="micro_batch")
        assert a.loss_sum.item() / a.loss_count == pytest.approx(b.loss_sum.item(), rel=1e-6)
        for one, other in zip(first.module.parameters(), second.module.parameters(), strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)

    def test_sources_are_added_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        backend = toy_backend()
        accumulate = backend.accumulate

        def with_sources(batch: Any, weight: float, last: bool) -> dict[str, torch.Tensor]:
            return {**accumulate(batch, weight, last), "by_source": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}

        monkeypatch.setattr(backend, "accumulate", with_sources)
        result = run_step(backend, batches([0], [1]), Collective())
        assert result.by_source is not None and result.by_source.tolist() == [[2, 4], [6, 8]]
        assert run_step(toy_backend(), batches([0]), Collective()).by_source is None
