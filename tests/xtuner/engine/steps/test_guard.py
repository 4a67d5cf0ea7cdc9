"""Steps without a finite gradient: skipped exactly, counted, and an end put to too many."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.xtuner.engine.toy import ToyDataset, ToyModel, train_toy
from xtuner.engine.processes.environment import Collective
from xtuner.engine.steps.guard import FiniteGuard
from xtuner.engine.steps.optim import build_optimizer
from xtuner.engine.steps.step import run_step
from xtuner.engine.strategies.plain import PlainBackend
from xtuner.errors import XTunerError

CPU = torch.device("cpu")


class BadModel(ToyModel):
    """Its loss is no number from the third forward on."""

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        self.calls = getattr(self, "calls", 0) + 1
        kwargs.pop("sample_ids", None)
        output = super().forward(*args, **kwargs)
        return {**output, "loss_sum": output["loss_sum"] * (float("nan") if self.calls > 2 else 1)}


class NamedDataset(ToyDataset):
    """Samples with ids."""

    def collate_fn(self, samples: list[dict[str, torch.Tensor]]) -> dict[str, Any]:
        return {**super().collate_fn(samples), "sample_ids": [f"s{len(s['labels'])}" for s in samples]}


def test_skipped_step_changes_nothing() -> None:
    torch.manual_seed(0)
    model = BadModel()
    backend = PlainBackend(model, build_optimizer(model, CPU, lr=0.1, weight_decay=0.1), CPU)
    data = ToyDataset()
    batch = data.collate_fn([data[0], data[1]])
    for _ in range(2):
        run_step(backend, [batch], Collective())
    weights = [p.clone() for p in model.parameters()]
    moments = [s["exp_avg"].clone() for s in backend.optimizer.optimizer.state.values()]
    result = run_step(backend, [batch], Collective())
    assert not torch.isfinite(result.grad_norm)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), weights, strict=True))
    states = backend.optimizer.optimizer.state.values()
    assert all(torch.equal(s["exp_avg"], m) and s["step"] == 2 for s, m in zip(states, moments, strict=True))


def test_counts_rows(tmp_path: Path) -> None:
    guard = FiniteGuard(tmp_path, limit=2, rank=0)
    for step, norm in enumerate((1.0, float("inf"), torch.tensor(2.0), torch.tensor(float("nan")), None), 1):
        guard.watch(step, norm, [])
    assert (guard.skipped, guard.in_row, guard.exhausted) == (2, 1, False)
    guard.watch(6, float("nan"), [{"sample_ids": ["a"]}])
    assert guard.exhausted


@pytest.mark.parametrize("async_save", [False, True])
def test_too_many_end_the_run_with_the_batch_saved(tmp_path: Path, async_save: bool) -> None:
    settings = dict(max_skipped_steps=3, max_iters=20, save_steps=50, async_save=async_save)
    # the ranks agree with the next step's exchange, so one step more than the limit is made
    with pytest.raises(XTunerError, match=r"4 steps in a row .* samples s\d+") as caught:
        train_toy(tmp_path, model=BadModel, dataset=NamedDataset, **settings)
    (file,) = (tmp_path / "non_finite").iterdir()
    assert file.name in str(caught.value)
    batches = torch.load(file)
    assert len(batches) == 2 and batches[0]["labels"].shape[0] == 2 and batches[0]["sample_ids"]
    (saved,) = tmp_path.glob("iter_*.pth")
    assert all(t.isfinite().all() for t in torch.load(saved, weights_only=True)["state_dict"].values())


def test_the_last_checkpoint_of_a_finite_step_stays(tmp_path: Path) -> None:
    """Although those of the bad steps would push it out."""
    with pytest.raises(XTunerError, match="steps in a row"):
        train_toy(tmp_path, model=BadModel, max_skipped_steps=5, max_iters=20, save_steps=1, save_total_limit=2)
    names = {path.name for path in tmp_path.glob("iter_*.pth")}
    # two micro-batches a step, the third forward is bad
    assert "iter_1.pth" in names and len(names) == 3


@pytest.mark.parametrize("batch_size", [10, 41])
def test_step_of_more_samples_than_there_are(tmp_path: Path, batch_size: int) -> None:
    with pytest.raises(
        XTunerError, match=rf"takes {4 * batch_size} samples \(batch_size {batch_size} x accumulative_c"
    ):
        train_toy(tmp_path, batch_size=batch_size, accumulative_counts=4, size=39)
