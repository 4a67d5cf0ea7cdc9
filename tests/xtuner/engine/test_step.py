from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.xtuner.engine.toy import ToyDataset, ToyModel
from xtuner.constants import IGNORE_INDEX
from xtuner.engine.environment import Collective
from xtuner.engine.optim import build_adamw
from xtuner.engine.plain import PlainBackend
from xtuner.engine.step import check_counts, count_supervised, run_step
from xtuner.errors import XTunerError

CPU = torch.device("cpu")


def toy_backend(**settings: Any) -> PlainBackend:
    torch.manual_seed(0)
    model = ToyModel()
    return PlainBackend(model, build_adamw(model, CPU, lr=1e-2, **settings), CPU)


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
        assert first.num_supervised == second.num_supervised == first.counted == first.expected
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
        assert run_step(backend, [batch], Collective()).num_supervised == 0
        assert all(torch.equal(p, q) for p, q in zip(backend.module.parameters(), before, strict=True))

    def test_bf16_on_the_cpu_is_near_fp32(self) -> None:
        results = [run_step(toy_backend(precision=name), batches([0, 1]), Collective()) for name in ("bf16", "fp32")]
        losses = [result.loss_sum.item() / result.num_supervised for result in results]
        assert losses[0] == pytest.approx(losses[1], rel=1e-2)  # bf16 keeps 8 bits
        assert losses[0] != losses[1]

    def test_votes_are_counted(self) -> None:
        votes = {"stop": True, "written": False}
        assert run_step(toy_backend(), batches([0]), Collective(), votes).votes == {"stop": 1, "written": 0}


def test_miscounting_model_is_found() -> None:
    check_counts(4, 4)
    with pytest.raises(XTunerError, match="reports 3 supervised tokens where the batches' labels have 4"):
        check_counts(3, 4)
