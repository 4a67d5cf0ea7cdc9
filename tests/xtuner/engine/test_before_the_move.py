"""A run that the program saved before its modules moved: today's resumes it, with one warning of the old names."""

from __future__ import annotations

import logging
import pickletools
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from xtuner import registry
from xtuner.cli import main

FORMER = Path(__file__).parent / "before_the_move"
CONFIG = "run/llava_vicuna7b_clip_L_14_336_pretrain_padding.py"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy in the current folder, in a process that has warned of nothing yet."""
    shutil.copytree(FORMER, tmp_path / "former")
    monkeypatch.chdir(tmp_path / "former")
    monkeypatch.setenv("XTUNER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(registry, "_warned_of", set())
    run = tmp_path / "former" / "run"
    (run / "checkpoint_of_step_4.zip").rename(run / "iter_4.pth")
    return run


@pytest.mark.parametrize("config", ["as_written", "resolved"])
def test_resumed_to_the_same_weights(run: Path, config: str, framework_log: list[logging.LogRecord]) -> None:
    (run / f"{config}.txt").rename(run.parent / CONFIG)
    assert main(["train", CONFIG, "--work-dir", "run", "--resume", "auto"]) == 0
    said = [record.getMessage() for record in framework_log]
    assert any("Resumed from run/iter_4.pth at step 4" in line for line in said)
    assert sum("old names of classes that have moved" in line for line in said) == 1
    before, expected = (
        torch.load(run / "iter_4.pth", weights_only=True)["state_dict"],
        load_file(run / "weights_of_step_6.safetensors"),
    )
    found = torch.load(run / "iter_6.pth", weights_only=True)["state_dict"]
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)
        assert not torch.equal(found[name], before[name])


def test_the_checkpoint_names_tensors_alone() -> None:
    with zipfile.ZipFile(FORMER / "run" / "checkpoint_of_step_4.zip") as file:
        pickled = next(file.read(name) for name in file.namelist() if name.endswith("data.pkl"))
    named = {str(argument) for operation, argument, _ in pickletools.genops(pickled) if operation.name == "GLOBAL"}
    assert named and {name.split(".")[0].split()[0] for name in named} <= {"torch", "collections"}
