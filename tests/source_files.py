"""The same records in every form that training reads: JSON with a folder and a box file, Parquet, Arrow, WebDataset."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

KINDS = ("parquet", "parquet folder", "arrow folder", "arrow file", "webdataset")


def images_of(record: Mapping[str, Any]) -> list[str]:
    """Returns the picture paths of a record."""
    image = record.get("image") or []
    return [image] if isinstance(image, str) else list(image)


def as_rows(records: Sequence[Mapping[str, Any]], images: Path, boxes: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Returns rows with the pictures' bytes and their boxes, one list entry per picture."""
    known = {record["image"]: record for record in boxes}
    rows = []
    for record in records:
        paths = images_of(record)
        found = [known.get(path, {}) for path in paths]
        rows.append(
            {
                "id": str(record["id"]),
                "images": [{"bytes": (images / path).read_bytes(), "path": path} for path in paths],
                "conversations": record["conversations"],
                "boxes": [one.get("boxes", []) for one in found],
                "labels": [one.get("labels", []) for one in found],
                "scores": [one.get("scores", []) for one in found],
                "width": [one.get("width") for one in found],
                "height": [one.get("height") for one in found],
            }
        )
    return rows


def features() -> datasets.Features:
    """Returns the features of `as_rows`."""
    return datasets.Features(
        {
            "id": datasets.Value("string"),
            "images": datasets.List(datasets.Image()),
            "conversations": datasets.List({"from": datasets.Value("string"), "value": datasets.Value("string")}),
            "boxes": datasets.List(datasets.List(datasets.List(datasets.Value("float64")))),
            "labels": datasets.List(datasets.List(datasets.Value("string"))),
            "scores": datasets.List(datasets.List(datasets.Value("float64"))),
            "width": datasets.List(datasets.Value("int32")),
            "height": datasets.List(datasets.Value("int32")),
        }
    )


def write_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> None:
    """Writes a tar of named members."""
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def shard_members(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, bytes]]:
    """Returns the members of a WebDataset shard that holds `rows`."""
    members = []
    for number, row in enumerate(rows):
        for place, picture in enumerate(row["images"]):
            suffix = picture["path"].rpartition(".")[2]
            members.append((f"{number:04d}.{place}.{suffix}", picture["bytes"]))
        text = {**row, "images": [picture["path"] for picture in row["images"]]}
        members.append((f"{number:04d}.json", json.dumps(text).encode()))
    return members


def write_source(kind: str, folder: Path, rows: Sequence[Mapping[str, Any]], whole: bool = False) -> str:
    """Writes `rows`, in two files or `whole`, and returns their ``data_path``."""
    folder.mkdir(parents=True, exist_ok=True)
    schema = features().arrow_schema
    half = 0 if whole else len(rows) // 2
    parts = [list(rows[:half]), list(rows[half:])] if half else [list(rows)]
    if kind.startswith("parquet"):
        for number, part in enumerate(parts):
            table = pa.Table.from_pylist(part, schema)
            pq.write_table(table, folder / f"train-{number:05d}-of-{len(parts):05d}.parquet", row_group_size=3)
        return str(folder) if kind == "parquet folder" else str(folder / "*.parquet")
    if kind == "arrow folder":
        data = datasets.Dataset(pa.Table.from_pylist(list(rows), schema))
        data.save_to_disk(folder / "saved", num_shards=len(parts))
        return str(folder / "saved")
    if kind == "arrow file":
        table = pa.Table.from_pylist(list(rows), schema)
        with pa.OSFile(str(folder / "all.arrow"), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            writer.write_table(table, max_chunksize=3)
        return str(folder / "all.arrow")
    for number, part in enumerate(parts):
        write_tar(folder / f"shard-{number:03d}.tar", shard_members(part))
    return str(folder / f"shard-{{000..{len(parts) - 1:03d}}}.tar")
