"""What the shell scripts are told of a config."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "script/stage_info.py"
PRETRAIN = "fuse_yi34b_clip_L_14_336_pretrain_padding"


@pytest.fixture(scope="module")
def stage_info() -> ModuleType:
    spec = importlib.util.spec_from_file_location("stage_info", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("config", [PRETRAIN, f"mg_llava/config/yi/{PRETRAIN}.py"])
def test_name_and_deepspeed(config: str, stage_info: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert stage_info.main([config]) == 0
    assert capsys.readouterr().out.splitlines() == [PRETRAIN, "deepspeed_zero3"]
    assert stage_info.main([config, "deepspeed=None"]) == 0
    assert capsys.readouterr().out.splitlines() == [PRETRAIN, ""]


def test_mistake(stage_info: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert stage_info.main([PRETRAIN, "batchsize=3"]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and "batch_size" in captured.err


def test_absent_training_files(stage_info: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert stage_info.main(["--need-files", PRETRAIN]) == 1
    message = capsys.readouterr().err
    named = ("data_path", "image_folder", "box_json_path", "visual_encoder_aux_path")
    assert all(f"{setting}: '" in message for setting in named)
    assert "benchmark" not in message
    there = [f"{setting}={tmp_path}" for setting in named]
    assert stage_info.main(["--need-files", PRETRAIN, *there]) == 0
