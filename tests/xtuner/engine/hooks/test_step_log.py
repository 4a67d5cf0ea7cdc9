"""When the log line comes, and what is said before a long first step."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.xtuner.engine.toy import train_toy
from xtuner.engine.hooks import step_log
from xtuner.engine.hooks.step_log import StepLogHook


def lines(records: list[logging.LogRecord]) -> list[str]:
    return [text.split("  ")[0] for record in records if (text := record.getMessage()).startswith("step ")]


def test_the_first_step_has_a_line_then_the_interval(tmp_path: Path, framework_log: list[logging.LogRecord]) -> None:
    train_toy(tmp_path, max_iters=7, logging_interval=3)
    assert lines(framework_log) == ["step 1/7", "step 3/7", "step 6/7", "step 7/7"]


def test_so_has_the_first_step_of_a_resumed_run(tmp_path: Path, framework_log: list[logging.LogRecord]) -> None:
    train_toy(tmp_path, max_iters=4, logging_interval=10)
    framework_log.clear()
    train_toy(tmp_path, resume="auto", max_iters=12, logging_interval=10)
    assert lines(framework_log) == ["step 5/12", "step 10/12", "step 12/12"]


@pytest.mark.parametrize(("flops", "said"), [(9e14, True), (1e9, False), (0.0, False)])
def test_a_long_first_step_is_announced(
    flops: float, said: bool, monkeypatch: pytest.MonkeyPatch, framework_log: list[logging.LogRecord]
) -> None:
    monkeypatch.setattr(step_log, "_cpu_flops_per_second", lambda: 1e12)
    plan = SimpleNamespace(environment=SimpleNamespace(device=torch.device("cpu")))
    runner = SimpleNamespace(iter=0, rank=0, plan=plan, module=SimpleNamespace(step_flops=lambda batch: flops))
    hook = StepLogHook(10)
    hook.before_train_iter(runner, 0, [{}])
    runner.iter = 1
    hook.before_train_iter(runner, 1, [{}])
    found = [record.getMessage() for record in framework_log]
    assert found == (
        ["The first step takes 15 minutes or more: 900.0 TFLOP on this CPU. The next line comes after it."] * said
    )
