"""A run with rates by part against hand-made AdamW groups, bit for bit, and resumed; its log; other optimizers."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.xtuner.engine.toy import ToyModel, toy_config
from xtuner.engine.assemble import assemble
from xtuner.engine.processes.environment import setup_environment
from xtuner.engine.steps.optim import StepOptimizer
from xtuner.engine.steps.precision import resolve_precision
from xtuner.engine.steps.schedule import WarmupConstant, WarmupLinear
from xtuner.errors import XTunerError
from xtuner.model.files.weight_files import read_state_dict

RATES = {"lr": {"default": 1e-2, "embedding": 1e-3, "head.4": 3e-3}, "weight_decay": {"default": 0.1, "embedding": 0.5}}


class TrainedToy(ToyModel):
    """Both parts are trained."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.set_trainable(("embedding", "head"))


def by_hand(model: Any, device: torch.device, cpu_offload: bool, zero_stage: int, **_: Any) -> StepOptimizer:
    """The groups of `RATES`, written out."""
    first, norm, last = model.head[0], model.head[1], model.head[4]
    groups = [
        {"params": [model.embedding.weight], "lr": 1e-3, "weight_decay": 0.5},
        {"params": [last.weight], "lr": 3e-3, "weight_decay": 0.1},
        {"params": [last.bias], "lr": 3e-3, "weight_decay": 0.0},
        {"params": [first.weight], "lr": 1e-2, "weight_decay": 0.1},
        {"params": [first.bias, norm.weight, norm.bias], "lr": 1e-2, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.999), fused=True)
    return StepOptimizer(optimizer, resolve_precision("fp32", device), 0.0, 2)


def train(work_dir: Path, resume: str | None = None, schedule: dict | None = None, **optimizer: Any) -> Any:
    environment = setup_environment(None)
    cfg = toy_config(model=TrainedToy, max_iters=6, save_steps=1, save_total_limit=None, max_norm=0.0)
    cfg.optimizer.update(optimizer)
    cfg.schedule.update(schedule or {})
    runner = assemble(cfg, work_dir.name, work_dir, environment, None, resume)
    runner.train()
    return runner


def weights(folder: Path, step: int = 6) -> dict[str, torch.Tensor]:
    return read_state_dict(folder / f"iter_{step}.pth")


def scalars(folder: Path) -> list[dict[str, float]]:
    file = next(folder.glob("*/vis_data/scalars.json"))
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_equals_groups_by_hand_bit_for_bit_and_through_resume(tmp_path: Path) -> None:
    train(tmp_path / "ours", **RATES)
    train(tmp_path / "theirs", type=by_hand)
    train(tmp_path / "resumed", resume=str(tmp_path / "ours" / "iter_3.pth"), **RATES)
    for step in (1, 6):
        ours, theirs = weights(tmp_path / "ours", step), weights(tmp_path / "theirs", step)
        assert ours.keys() == theirs.keys() and len(ours) == 7
        assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert all(torch.equal(weights(tmp_path / "resumed")[name], value) for name, value in ours.items())


def test_every_rate_is_logged(tmp_path: Path, framework_log: list[logging.LogRecord]) -> None:
    train(tmp_path / "run", **RATES, schedule={"type": WarmupConstant, "warmup_ratio": 0})
    last = scalars(tmp_path / "run")[-1]
    assert last["train/lr"] == last["train/lr/default"] == 1e-2
    assert (last["train/lr/embedding"], last["train/lr/head.4"]) == (1e-3, 3e-3)
    lines = [record.getMessage() for record in framework_log]
    assert any("lr default 1.000e-02, embedding 1.000e-03, head.4 3.000e-03 " in line for line in lines)


class TestResume:
    def test_with_another_schedule(self, tmp_path: Path, framework_log: list[logging.LogRecord]) -> None:
        constant = {"type": WarmupConstant, "warmup_ratio": 0}
        train(tmp_path / "one", schedule=constant, lr=1e-2)
        linear = {"type": WarmupLinear, "warmup_ratio": 0, "floor": 0.1}
        train(tmp_path / "two", str(tmp_path / "one" / "iter_3.pth"), schedule=linear, lr=1e-2)
        rates = [line["train/lr"] for line in scalars(tmp_path / "two")]
        assert rates == pytest.approx([1e-2 * (0.1 + 0.9 * (1 - step / 6)) for step in (3, 4, 5)])
        assert any("the learning rate follows WarmupLinear(" in record.getMessage() for record in framework_log)

    def test_the_config_says_the_rates(self, tmp_path: Path, framework_log: list[logging.LogRecord]) -> None:
        constant = {"type": WarmupConstant, "warmup_ratio": 0}
        train(tmp_path / "one", schedule=constant, **RATES)
        other = {**RATES, "lr": {**RATES["lr"], "embedding": 5e-3}}
        runner = train(tmp_path / "two", str(tmp_path / "one" / "iter_3.pth"), schedule=constant, **other)
        assert runner.rates() == {"default": 1e-2, "embedding": 5e-3, "head.4": 3e-3}
        assert any("initial_lr of embedding from 0.001 to 0.005" in record.getMessage() for record in framework_log)

    @pytest.mark.parametrize(
        ("optimizer", "message"),
        [
            ({"lr": 1e-2}, "weights grouped otherwise for the optimizer"),
            ({**RATES, "optimizer_class": {"type": torch.optim.SGD}}, "the optimizer AdamW, this run has SGD"),
        ],
    )
    def test_refuses(self, tmp_path: Path, optimizer: dict[str, Any], message: str) -> None:
        train(tmp_path / "one", **RATES)
        with pytest.raises(XTunerError, match=message):
            train(tmp_path / "two", str(tmp_path / "one" / "iter_3.pth"), **optimizer)


@pytest.mark.parametrize(
    "kind",
    [
        {"type": torch.optim.Adafactor},
        {"type": "xtuner.engine.steps.Muon"},
        {"type": torch.optim.SGD, "momentum": 0.9},
        {"type": "torch.optim.RMSprop"},
        {"type": torch.optim.AdamW, "fused": False},
    ],
    ids=lambda kind: str(kind["type"]).rpartition(".")[2],
)
def test_another_optimizer_trains_and_resumes_bit_for_bit(tmp_path: Path, kind: dict[str, Any]) -> None:
    train(tmp_path / "whole", optimizer_class=kind, **RATES)
    train(tmp_path / "resumed", str(tmp_path / "whole" / "iter_3.pth"), optimizer_class=kind, **RATES)
    whole = weights(tmp_path / "whole")
    assert all(torch.equal(weights(tmp_path / "resumed")[name], value) for name, value in whole.items())
    assert all(not torch.equal(weights(tmp_path / "whole", 1)[name], value) for name, value in whole.items())
