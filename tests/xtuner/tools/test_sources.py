"""The commands on data that is no JSON."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.source_files import as_rows, write_source
from tests.tiny_assistant import box_record, save_picture
from tests.xtuner.tools.conftest import Trained
from tests.xtuner.tools.test_finetune import finetune, own, rows
from xtuner.cli import main
from xtuner.config import load_config

__all__ = ["own"]


def data(folder: Path) -> list[dict[str, Any]]:
    """Rows of 12 records with pictures and boxes."""
    for number in range(6):
        save_picture(folder / f"images/p/{number}.png", number)
    return as_rows(rows(12), folder / "images", [box_record(f"p/{number}.png") for number in range(6)])


@pytest.mark.parametrize("kind", ["parquet", "arrow folder", "webdataset"])
def test_check_log_and_browse(
    kind: str, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XTUNER_CACHE", str(tmp_path / "cache"))
    path = write_source(kind, tmp_path / "source", data(tmp_path))
    options = [*trained.options, f"data_path={path}", "box_json_path=None"]
    assert main(["check-dataset", trained.config, *options]) == 0
    said = capsys.readouterr().out
    assert "The training data has no problems" in said and "boxes of a picture" in said
    assert main(["log-dataset", trained.config, "-n", "1", "--tokens", *options]) == 0
    assert "object tokens" in capsys.readouterr().out
    assert main(["browse-dataset", trained.config, "-n", "2", "--out", str(tmp_path / "page"), *options]) == 0
    assert len(list((tmp_path / "page").glob("*.jpg"))) == 2
    assert main(["preprocess", "llava", "--config", trained.config, "--out", str(tmp_path / "out"), *options]) == 0
    assert main(["log-dataset", trained.config, *options, f"offline_processed_text_folder={tmp_path / 'out'}"]) == 0


def test_check_names_every_fault(trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entries = data(tmp_path)
    entries[0]["images"][0]["bytes"] = b"no picture"
    entries[1]["conversations"] = entries[1]["conversations"][1:]
    entries[2]["boxes"][0] = [[1.0, 2.0, 3.0]]
    entries[3]["scores"][0] = [0.5] * 9
    entries[4]["images"] = []
    path = write_source("parquet", tmp_path / "source", entries)
    assert main(["check-dataset", trained.config, *trained.options, f"data_path={path}", "box_json_path=None"]) == 1
    said = capsys.readouterr().out
    for kind in ("picture does not decode: 1", "no human turn: 1", "malformed boxes: 2", "wrong number of pictures"):
        assert kind in said, said


def test_finetune_takes_pictures_and_boxes_from_the_source(own: Path) -> None:
    path = write_source("parquet", own / "source", data(own))
    parts = ["--llm", "parts/llm", "--low-res", "parts/clip", "--high-res", "parts/convnext", "--template", "vicuna"]
    words = [*parts, "--data", path, "--out", "out", "--dry-run"]
    assert main(["finetune", *words, "--cfg-options", "image_size_aux=64"]) == 0
    cfg = load_config("out/out_sft.py")
    assert cfg.train_dataset.image_folder == f"source:{path}"
    lines = (own / "out/data/training.jsonl").read_text().splitlines()
    record = json.loads(lines[0])
    assert record["image"][0].startswith("source:train-00000") and record["boxes"][0]
    assert main(["check-dataset", "out/out_sft.py"]) == 0


def losses(folder: Path) -> list[float]:
    """What the log of a run says, step by step."""
    found = []
    for file in sorted(folder.rglob("scalars.json")):
        found += [json.loads(line)["train/loss"] for line in file.read_text().splitlines() if "train/loss" in line]
    return found


@pytest.mark.slow
def test_the_same_losses(own: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A training on each form, against JSON with a folder and a box file."""
    assert finetune("--dry-run") == 0
    config = "work_dirs/mine/mine_pretrain.py"
    settings = ["max_iters=4", "logging_interval=1", "dataloader_num_workers=0", "visualizers=[]"]
    entries = data(own)
    found = {}
    for kind in ("json", "parquet", "arrow folder", "webdataset"):
        options = [f"data_path={own / 'mine.json'}"]
        if kind != "json":
            path = write_source(kind, own / kind.replace(" ", "_"), entries)
            options = [f"data_path={path}", "box_json_path=None", "image_folder=nowhere"]
        assert main(["train", config, "--work-dir", f"runs/{kind}", "--cfg-options", *settings, *options]) == 0
        found[kind] = losses(own / f"runs/{kind}")
    # the last bit of a sum depends on where its memory lies; samples in another order differ by far more
    assert len(found["json"]) == 4
    assert all(values == pytest.approx(found["json"], rel=1e-6, abs=0) for values in found.values()), found


@pytest.mark.slow
def test_a_stream_is_trained_on_and_resumed(own: Path) -> None:
    assert finetune("--dry-run") == 0
    config = "work_dirs/mine/mine_pretrain.py"
    path = write_source("webdataset", own / "tar", data(own))
    settings = ["max_iters=4", "logging_interval=1", "save_steps=2", "save_total_limit=2", "visualizers=[]"]
    settings += ["batch_size=3", f"data_path={path}", "image_folder=", "box_json_path=None", "dataloader_num_workers=2"]
    settings += ["train_dataset.type=mg_llava.data.MGLLaVAStream", "train_dataset.buffer=5"]
    assert main(["train", config, "--work-dir", "whole", "--cfg-options", *settings]) == 0
    shutil.copytree("whole", "again")
    shutil.rmtree("again/iter_4.pth", ignore_errors=True)
    (own / "again/iter_4.pth").unlink(missing_ok=True)
    words = ["--work-dir", "again", "--resume", "again/iter_2.pth", "--cfg-options", *settings]
    assert main(["train", config, *words]) == 0
    whole = losses(own / "whole")
    assert len(whole) == 4 and losses(own / "again")[-2:] == whole[2:]
    # as many epochs as it has are not known
    rest = [setting for setting in settings if not setting.startswith("max_iters")]
    assert main(["train", config, "--work-dir", "no", "--cfg-options", *rest]) == 1
