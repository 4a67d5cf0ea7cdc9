"""A box file turned once into memory-mapped Arrow and key tables; afterwards nobody parses it again.

The folder holds ``boxes.arrow`` (the good records, one per picture or frame), ``images.keys``, ``ids.keys`` and
``videos.keys`` (see `KeyTable`) and ``index.json``: rows of each record batch, a sentence per malformed record, and the
keys of several records with different boxes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mg_llava.boxes.records import BoxRecord, not_json, parse_records
from mg_llava.boxes.selection import PictureBoxes
from xtuner.data.records.json_stream import Record
from xtuner.data.records.records import read_keyed_records
from xtuner.data.store.arrow_rows import ArrowRows, list_array, list_values
from xtuner.data.store.cache import build_once, cache_folder, publish, remembered_digest, unfinished_name
from xtuner.data.store.key_table import KeyTable, hash_key
from xtuner.data.store.parallel import map_batches, processes_for
from xtuner.data.store.progress import FileProgress
from xtuner.errors import XTunerError

_VERSION = 4
_BATCH = 100
"""Records per record batch: looking one up maps its surroundings, so small ones keep what a rank maps small."""
SCHEMA = pa.schema(
    {
        "where": pa.string(),
        "image": pa.string(),
        "id": pa.string(),
        "boxes": pa.list_(pa.float32()),
        "labels": pa.list_(pa.string()),
        "scores": pa.list_(pa.float32()),
        "size": pa.list_(pa.int32()),
        "video": pa.string(),
        "frame": pa.int32(),
        "time": pa.float64(),
    }
)
"""``boxes`` is flat, four numbers each; ``size`` is empty where the record gives none."""


def box_index_folder(path: str) -> Path:
    """Returns the folder of the box file `path`, made now where it was not before.

    Raises:
        XTunerError: the file is missing or no JSON of records, or the cache cannot be written.
    """
    try:
        folder = cache_folder() / "boxes" / f"v{_VERSION}-{remembered_digest(path)}"
    except OSError as error:
        raise XTunerError(
            f"box file '{path}' cannot be read ({error.strerror}): check box_json_path, or set it to None "
            "to train without boxes."
        ) from error
    build_once(folder, lambda: _build(path, folder))
    return folder


def read_record(rows: ArrowRows, row: int) -> BoxRecord:
    """Returns the record in `row` of ``boxes.arrow``."""
    batch, number = rows.locate(row)
    # copies: what is memory-mapped cannot be written to
    boxes, scores = (np.array(list_values(batch, name, number)) for name in ("boxes", "scores"))
    found = PictureBoxes(boxes.reshape(-1, 4), tuple(batch.column("labels")[number].as_py()), scores)
    size = list_values(batch, "size", number).tolist()
    names = ("image", "id", "video", "frame", "time")
    rest = {name: batch.column(name)[number].as_py() for name in names}
    where = batch.column("where")[number].as_py()
    return BoxRecord(where, found, (size[0], size[1]) if size else None, **rest)


def _build(path: str, folder: Path) -> None:
    unfinished = unfinished_name(folder)
    try:
        unfinished.mkdir(parents=True, exist_ok=True)
        _write(path, unfinished)
        publish(unfinished, folder)
    except OSError as error:
        raise XTunerError(
            f"the index of box file '{path}' cannot be written to '{folder.parent}': {error}; "
            "free space, or set XTUNER_CACHE to another folder."
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@dataclass
class _Parsed:
    """A batch of records: the good ones, a sentence per bad one, and (hash, row in the batch) of their keys."""

    batch: pa.RecordBatch
    problems: list[str]
    images: list[tuple[int, int]]
    ids: list[tuple[int, int]]
    videos: list[tuple[int, int]]


def _write(path: str, folder: Path) -> None:
    problems: list[str] = []
    rows_of_batches: list[int] = []
    # arrays of bytes, not lists: millions of numbers
    images, ids, videos = bytearray(), bytearray(), bytearray()
    first = 0
    with FileProgress(path, "Indexing") as progress:
        batches = _batches(path, progress, problems)
        processes = processes_for(progress.size, None)
        with pa.OSFile(str(folder / "boxes.arrow"), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
            for parsed in map_batches(_parse, batches, processes):
                progress.advance(_BATCH)
                problems += parsed.problems
                if not parsed.batch.num_rows:
                    continue
                writer.write_batch(parsed.batch)
                rows_of_batches.append(parsed.batch.num_rows)
                for table, keys in ((images, parsed.images), (ids, parsed.ids), (videos, parsed.videos)):
                    table += b"".join(h.to_bytes(8, "little") + (first + row).to_bytes(8, "little") for h, row in keys)
                first += parsed.batch.num_rows
    for name, table in (("images", images), ("ids", ids), ("videos", videos)):
        pairs = np.frombuffer(table, np.uint64).reshape(-1, 2)
        KeyTable.save(folder / f"{name}.keys", pairs[:, 0], pairs[:, 1])
    rows = ArrowRows([folder / "boxes.arrow"], [rows_of_batches])
    repeated = {kind: dict(_repeated(rows, KeyTable(folder / f"{kind}s.keys"), kind)) for kind in ("image", "id")}
    content = {"rows_of_batches": rows_of_batches, "problems": problems, "repeated": repeated}
    (folder / "index.json").write_text(json.dumps(content))


def _batches(path: str, progress: FileProgress, problems: list[str]) -> Iterator[list[Record]]:
    def records() -> Iterator[Record]:
        for item in read_keyed_records(path, "box file", progress.on_bytes):
            if isinstance(item, Record):
                yield item
            elif not problems:
                # what follows cannot be told apart, so the file as a whole is no box file
                raise XTunerError(f"box file '{path}' {not_json(path, item)}.")

    stream = records()
    while batch := list(islice(stream, _BATCH)):
        yield batch


def _parse(records: list[Record]) -> _Parsed:
    good: list[BoxRecord] = []
    problems: list[str] = []
    for record in records:
        try:
            good += parse_records(record.key, record.index + 1, record.value)
        except XTunerError as error:
            problems.append(str(error))
    columns: dict[str, Any] = {
        "where": [record.where for record in good],
        "image": [record.image for record in good],
        "id": [record.id for record in good],
        "boxes": list_array([record.found.boxes.reshape(-1) for record in good], pa.float32()),
        "labels": list_array([record.found.labels for record in good], pa.string()),
        "scores": list_array([record.found.scores for record in good], pa.float32()),
        "size": list_array([record.size or () for record in good], pa.int32()),
        "video": [record.video for record in good],
        "frame": [record.frame for record in good],
        "time": [record.time for record in good],
    }
    arrays = [pa.array(columns[field.name], type=field.type) for field in SCHEMA]
    batch = pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)
    return _Parsed(
        batch,
        problems,
        [(hash_key(record.image), row) for row, record in enumerate(good) if record.image is not None],
        [(hash_key(record.id), row) for row, record in enumerate(good) if record.id is not None],
        [(hash_key(record.video), row) for row, record in enumerate(good) if record.video is not None],
    )


def _repeated(rows: ArrowRows, table: KeyTable, kind: str) -> Iterator[tuple[str, tuple[str, str]]]:
    """Yields the keys that several records with different boxes have, and two of those records."""
    for group in table.repeated():
        first: dict[str, BoxRecord] = {}
        for record in (read_record(rows, row) for row in group):
            key = str(getattr(record, kind))
            before = first.setdefault(key, record)
            if not before.same_boxes(record):
                yield key, (before.where, record.where)
                break
