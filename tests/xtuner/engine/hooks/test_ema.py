"""The average of the trained weights: its numbers, its files, its resuming."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from tests.xtuner.engine.toy import ToyModel, train_toy
from xtuner.engine.steps.settings import RuntimeSettings
from xtuner.model.files.base import read_base
from xtuner.model.files.weight_files import read_state_dict

SETTINGS = dict(max_iters=6, save_steps=1, save_total_limit=None, ema_decay=0.5)


def averages(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return read_state_dict(folder / "ema" / f"iter_{step}.pth")


def test_follows_the_weights(tmp_path: Path) -> None:
    train_toy(tmp_path, **SETTINGS)
    torch.manual_seed(7)
    expected = {name: value for name, value in ToyModel().state_dict().items()}
    for step in range(1, 7):
        # until step 8 the warm-up keeps less than a half
        keep = min(0.5, (1 + step) / (10 + step))
        weights = read_state_dict(tmp_path / f"iter_{step}.pth")
        expected = {name: torch.lerp(expected[name], weights[name], 1 - keep) for name in weights}
        found = averages(tmp_path, step)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_resumes_bit_for_bit(tmp_path: Path) -> None:
    train_toy(tmp_path / "whole", **SETTINGS)
    train_toy(tmp_path / "resumed", resume=str(tmp_path / "whole" / "iter_3.pth"), **SETTINGS)
    whole, resumed = averages(tmp_path / "whole", 6), averages(tmp_path / "resumed", 6)
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def test_a_run_without_goes_on_with_one(tmp_path: Path, framework_log: list[logging.LogRecord]) -> None:
    train_toy(tmp_path / "whole", **{**SETTINGS, "ema_decay": None})
    assert not (tmp_path / "whole" / "ema").exists()
    train_toy(tmp_path / "resumed", resume=str(tmp_path / "whole" / "iter_3.pth"), **SETTINGS)
    assert any("the average of the weights starts from those of" in record.getMessage() for record in framework_log)
    assert averages(tmp_path / "resumed", 6)


def test_its_files_are_checkpoints_that_go_with_the_runs(tmp_path: Path) -> None:
    train_toy(tmp_path, **{**SETTINGS, "save_total_limit": 2})
    kept = {path.name for path in (tmp_path / "ema").glob("*")}
    # the one that goes with the last checkpoint's coming is taken away at the next
    assert {"iter_5.pth", "iter_6.pth"} <= kept <= {"iter_4.pth", "iter_5.pth", "iter_6.pth"}
    assert read_base(tmp_path / "ema" / "iter_6.pth") == read_base(tmp_path / "iter_6.pth")
    assert read_state_dict(tmp_path / "ema" / "iter_6.pth").keys() == read_state_dict(tmp_path / "iter_6.pth").keys()


def test_training_is_the_same(tmp_path: Path) -> None:
    train_toy(tmp_path / "with", dropout=0.3, **SETTINGS)
    train_toy(tmp_path / "without", dropout=0.3, **{**SETTINGS, "ema_decay": None})
    ours, theirs = (read_state_dict(tmp_path / name / "iter_6.pth") for name in ("with", "without"))
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


@pytest.mark.parametrize("decay", [1.0, -0.1])
def test_refuses(decay: float) -> None:
    with pytest.raises(ValueError, match="ema_decay is"):
        RuntimeSettings(ema_decay=decay)
