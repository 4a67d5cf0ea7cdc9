"""Data written as Parquet shards gives the same samples, and `datasets` opens it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mg_llava.data.dataset import MGLLaVADataset
from tests.mg_llava.data.test_dataset import BOXES, RECORDS, talk, world
from tests.mg_llava.data.test_source_kinds import same_samples
from tests.source_files import as_rows, write_source
from xtuner.cli import main
from xtuner.errors import ProblemsError, XTunerError

__all__ = ["world"]

MORE = [
    {
        "id": "parts",
        "messages": [
            {"role": "system", "content": "A ."},
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": "c.png"}}, {"type": "text", "text": "What"}],
            },
            {"role": "assistant", "content": "A dog.", "loss": False},
            {"role": "user", "content": "is this"},
            {"role": "assistant", "content": "this"},
        ],
    },
    {"id": 7, "image": "a.png", "conversations": talk("What <image>"), "boxes": [[1, 2, 3, 4]], "labels": ["A"]},
]


def write(arguments: dict[str, Any], out: Path, **sizes: int) -> dict[str, int]:
    chosen = {"shard_bytes": 1 << 20, "group_bytes": 1 << 20, **sizes}
    return MGLLaVADataset.write_records({"type": MGLLaVADataset, **arguments}, str(out), **chosen)


def test_the_same_samples(world: Any, tmp_path: Path) -> None:
    arguments = world([*RECORDS, *MORE])
    out = tmp_path / "out"
    counts = write(arguments, out, group_bytes=200, shard_bytes=2000)
    assert counts["records"] == 7 and counts["pictures"] == 7 and counts["files"] > 1
    assert sorted(os.listdir(out / "data"))[0] == f"train-00000-of-{counts['files']:05d}.parquet"
    again = {**arguments, "data_path": str(out), "image_folder": "", "box_json_path": None}
    same_samples(MGLLaVADataset(**again), MGLLaVADataset(**arguments))


@pytest.mark.parametrize("kind", ["parquet", "webdataset", "arrow folder"])
def test_from_any_source_and_twice(kind: str, world: Any, tmp_path: Path) -> None:
    arguments = world()
    source = {"data_path": write_source(kind, tmp_path / "source", as_rows(RECORDS, tmp_path, BOXES))}
    given = {**arguments, **source, "image_folder": "", "box_json_path": None}
    write(given, tmp_path / "one")
    write({**given, "data_path": str(tmp_path / "one")}, tmp_path / "two")
    one, two = (pq.read_table(tmp_path / name / "data").drop_columns("source") for name in ("one", "two"))
    assert one == two
    same_samples(MGLLaVADataset(**{**given, "data_path": str(tmp_path / "two")}), MGLLaVADataset(**arguments))


def test_datasets_opens_it(world: Any, tmp_path: Path) -> None:
    write(world(), tmp_path / "out")
    found = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "hf"))
    assert found.features["images"] == datasets.List(datasets.Image())
    with Image.open(tmp_path / "a.png") as picture:
        assert list(found[0]["images"][0].getdata()) == list(picture.getdata())
    assert found[0]["labels"] == [["c0", "c1", "c2"]] and found[0]["source"] == "data"


def test_several_sources_by_the_command(world: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = world()
    (tmp_path / "more.jsonl").write_text(json.dumps({"id": "t", "conversations": talk("What", "this")}))
    config = tmp_path / "mine.py"
    sources = [arguments["data_path"], {"data_path": str(tmp_path / "more.jsonl"), "box_json_path": "", "repeats": 2}]
    config.write_text(
        "from mmengine.config import read_base\nwith read_base():\n    from xtuner.configs._base_.pretrain import *\n"
        f"llm_name_or_path = 'x'\nprompt_template = 'vicuna'\n"
        f"data_path = {sources!r}\nimage_folder = {str(tmp_path)!r}\nbox_json_path = {arguments['box_json_path']!r}\n"
    )
    assert main(["convert", "dataset", str(config), str(tmp_path / "out")]) == 0
    rows = pq.read_table(tmp_path / "out/data").to_pylist()
    assert [row["source"] for row in rows] == ["data"] * 5 + ["more"]
    words = ["--image-folder", str(tmp_path), "--boxes", arguments["box_json_path"]]
    assert main(["convert", "dataset", arguments["data_path"], str(tmp_path / "two"), *words]) == 0
    assert "5 records, 5 pictures, 1 files" in capsys.readouterr().out
    assert main(["convert", "dataset", str(tmp_path / "gone.parquet"), str(tmp_path / "x")]) == 1
    assert "does not exist" in capsys.readouterr().err


def test_faults_are_named_and_nothing_is_left(world: Any, tmp_path: Path) -> None:
    literal = {"id": "literal", "messages": [{"role": "user", "content": "<image>"}, MORE[0]["messages"][4]]}
    (tmp_path / "bad.png").write_bytes(b"no picture")
    broken = [{"id": "b", "image": "bad.png", "conversations": talk("<image>")},
              {"id": "g", "image": "gone.png", "conversations": talk("<image>")}]  # fmt: skip
    arguments = world([*RECORDS, literal, *broken, {"id": "n"}])
    with pytest.raises(ProblemsError) as raised:
        write(arguments, tmp_path / "out")
    kinds = [problem.partition(":")[0] for problem in raised.value.problems]
    assert kinds == ["place of a picture as text", "picture does not decode", "missing picture", "no messages"]
    assert not [name for name in os.listdir(tmp_path) if "out" in name]
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").touch()
    with pytest.raises(XTunerError, match="exists and is not empty"):
        write(world(), tmp_path / "full")


def test_row_groups_of_any_size_are_read_in_order(world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_source("parquet", tmp_path / "source", as_rows(RECORDS, tmp_path, BOXES))
    monkeypatch.setattr("xtuner.data.tables.parquet.MOST_PICTURE_BYTES", 10)
    given = {**world(), "data_path": path, "image_folder": "", "box_json_path": None}
    assert write(given, tmp_path / "out", group_bytes=1)["pictures"] == 5
