"""The same records as JSON, Parquet, Arrow and WebDataset are the same training samples."""

from __future__ import annotations

import io
import json
import logging
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from mg_llava.data.dataset import MGLLaVADataset
from tests.mg_llava.data.test_dataset import BOXES, RECORDS, talk, world
from tests.source_files import KINDS, as_rows, write_source, write_tar
from xtuner.data.sources.locate import locate

__all__ = ["world"]

COLUMNS = ("id", "input_ids", "labels", "box_counts", "box_sizes", "boxes", "box_scores", "box_labels")


def as_kind(kind: str, world: Any, tmp_path: Path, **changes: Any) -> dict[str, Any]:
    """The arguments of the world's data set, its data in another form."""
    arguments = world()
    path = write_source(kind, tmp_path / "source", as_rows(RECORDS, tmp_path, BOXES))
    return {**arguments, "data_path": path, "image_folder": "nowhere", "box_json_path": None, **changes}


def same_samples(ours: MGLLaVADataset, theirs: MGLLaVADataset) -> None:
    assert len(ours) == len(theirs) and ours.lengths.tolist() == theirs.lengths.tolist()
    for number in range(len(theirs)):
        (row, _), (other, _) = ours.samples.row(number), theirs.samples.row(number)
        for name in COLUMNS:
            assert row[name] == other[name], name
        for name in ("boxes", "box_scores"):
            assert row.numbers(name).tobytes() == other.numbers(name).tobytes()
        a, b = ours[number], theirs[number]
        assert torch.equal(a["pixel_values"], b["pixel_values"])
        assert all(torch.equal(*pair) for pair in zip(a["boxes"], b["boxes"], strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_columns_and_pictures(kind: str, world: Any, tmp_path: Path) -> None:
    reference = MGLLaVADataset(**world())
    dataset = MGLLaVADataset(**as_kind(kind, world, tmp_path))
    same_samples(dataset, reference)
    # as a worker process gets it
    again = pickle.loads(pickle.dumps(dataset.samples.files[0]))
    row, _ = dataset.samples.row(0)
    assert isinstance(again.open(row["images"][0]).read(), bytes)
    assert np.array_equal(dataset.statistics()["tokens of a sample"], reference.lengths)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_a_picture_is_copied(kind: str, world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    arguments = as_kind(kind, world, tmp_path)
    MGLLaVADataset(**arguments)[0]
    png = (tmp_path / "a.png").read_bytes()
    kept = [Path(folder) / name for folder, _, names in os.walk(tmp_path / "cache") for name in names]
    assert kept and not any(png[16:] in path.read_bytes() for path in kept)
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_a_box_file_knows_the_pictures_by_their_names(kind: str, world: Any, tmp_path: Path) -> None:
    arguments = world()
    rows = [
        {**row, "boxes": None, "labels": None, "scores": None, "width": None, "height": None}
        for row in as_rows(RECORDS, tmp_path, BOXES)
    ]
    path = write_source(kind, tmp_path / "source", rows)
    same_samples(MGLLaVADataset(**{**arguments, "data_path": path}), MGLLaVADataset(**arguments))


def test_no_boxes_where_none_are_wanted(world: Any, tmp_path: Path) -> None:
    dataset = MGLLaVADataset(**as_kind("parquet", world, tmp_path, box_json_path=""))
    assert all(len(boxes) == 0 for number in range(len(dataset)) for boxes in dataset[number]["boxes"])


def test_check_finds_nothing_and_counts_the_boxes(world: Any, tmp_path: Path) -> None:
    node = {"type": MGLLaVADataset, **as_kind("parquet", world, tmp_path)}
    found = MGLLaVADataset.check_records(node)
    reference = MGLLaVADataset.check_records({"type": MGLLaVADataset, **world()})
    assert not found.problems
    rows = dict(found.statistics)
    # a picture that two records use stands in the source twice
    assert rows["labels"] == "3, most frequent: c0 3, c1 3, c2 2"
    assert rows["text tokens"] == dict(reference.statistics)["text tokens"]


def test_what_is_slow_to_read_is_said_with_the_cure(
    world: Any, tmp_path: Path, framework_log: list[logging.LogRecord]
) -> None:
    def said() -> list[str]:
        return [record.getMessage() for record in framework_log if "compresses its pictures" in record.getMessage()]

    arguments = as_kind("parquet", world, tmp_path)
    MGLLaVADataset(**arguments).log_report()
    (note,) = said()
    assert f"'{arguments['data_path']}' compresses its pictures" in note and "`xtuner convert dataset` writes" in note
    assert f"slow pictures: {note}" in MGLLaVADataset.check_records(arguments).notes
    MGLLaVADataset.write_records(arguments, str(tmp_path / "shared"), 10**6, 10**6)
    framework_log.clear()
    MGLLaVADataset(**{**arguments, "data_path": str(tmp_path / "shared")}).log_report()
    MGLLaVADataset(**world()).log_report()
    assert not said()


def test_a_row_group_is_read_once_in_order(world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = as_kind("parquet", world, tmp_path)
    dataset = MGLLaVADataset(**arguments)
    read: list[int] = []
    whole = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_group", lambda self, group, **rest: read.append(group) or whole(self, group, **rest)
    )
    for number in range(len(dataset)):
        dataset[number]
    groups = sum(pq.ParquetFile(path).num_row_groups for path in locate(arguments["data_path"]).files)
    assert len(read) <= groups


def test_a_shard_that_mixes_formats(world: Any, tmp_path: Path) -> None:
    members = []
    for number, kind in enumerate(("PNG", "JPEG", "PNG", "JPEG")):
        out = io.BytesIO()
        Image.new("RGB", (12, 8), (number * 60, 0, 0)).save(out, kind)
        record = {"conversations": talk("<image>\nWhat")}
        members += [(f"{number}.{kind.lower()}", out.getvalue()), (f"{number}.json", json.dumps(record).encode())]
    write_tar(tmp_path / "mixed.tar", members)
    arguments = {**world(), "data_path": str(tmp_path / "mixed.tar"), "image_folder": "", "box_json_path": None}
    dataset = MGLLaVADataset(**arguments)
    assert [len(dataset[number]["pixel_values"]) for number in range(len(dataset))] == [1] * 4
