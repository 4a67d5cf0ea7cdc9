"""Rows of conversations, pictures, videos and boxes into Parquet shards with the features of `datasets`."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from xtuner.data.store.cache import publish, unfinished_name
from xtuner.errors import XTunerError

Row: TypeAlias = "dict[str, Any]"

_MOST_ROWS = 1000
"""Of a row group: text alone takes little room."""
_STORED = ("images.list.element.bytes", "videos.list.element.bytes")
"""Written without compression, so that each picture and each video can be read alone."""


def row_schema(videos: bool = False) -> pa.Schema:
    """Returns the columns of a row, as `datasets` describes them in the files; with `videos` a column of these.

    `datasets` hands videos over as bytes and path: decoding them itself takes another package.
    """
    from datasets import Features, Image, List, Value, Video

    features = {
        "id": Value("string"),
        "source": Value("string"),
        "images": List(Image()),
        **({"videos": List(Video(decode=False))} if videos else {}),
        "conversations": List({"from": Value("string"), "value": Value("string"), "loss": Value("bool")}),
        "boxes": List(List(List(Value("float32")))),
        "labels": List(List(Value("string"))),
        "scores": List(List(Value("float32"))),
        "width": List(Value("int32")),
        "height": List(Value("int32")),
    }
    return Features(features).arrow_schema


class RowWriter:
    """Writes ``data/train-00000-of-00003.parquet``, ... into a folder that appears when `finish` was called.

    Pictures and videos are stored as they are, without compression: so each can be read alone.

    Args:
        folder: new or empty.
        shard_bytes: about the size of a file.
        group_bytes: about the size of the pictures and videos of a row group.
        videos: rows have videos.

    Raises:
        XTunerError: the folder holds something.
    """

    def __init__(
        self, folder: str | os.PathLike[str], shard_bytes: int, group_bytes: int, videos: bool = False
    ) -> None:
        self.folder = Path(os.path.abspath(folder))
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise XTunerError(f"'{self.folder}' exists and is not empty: choose a new folder, nothing was overwritten.")
        self.shard_bytes, self.group_bytes = shard_bytes, group_bytes
        self.schema = row_schema(videos)
        self._unfinished = unfinished_name(self.folder)
        self._files: list[Path] = []
        self._writer: pq.ParquetWriter | None = None
        self._rows: list[Row] = []
        self._bytes = 0

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._close()
        finally:
            shutil.rmtree(self._unfinished, ignore_errors=True)
        if isinstance(error, OSError):
            raise XTunerError(f"'{self.folder}' cannot be written ({error}): free some space.") from error

    def write(self, row: Row) -> None:
        """Adds a row: of each column of `row_schema` a value."""
        self._rows.append(row)
        self._bytes += sum(len(held["bytes"]) for held in (*row["images"], *row.get("videos", ())))
        if self._bytes >= self.group_bytes or len(self._rows) >= _MOST_ROWS:
            self._write_group()

    def finish(self) -> int:
        """Completes the folder; returns the number of its files.

        Raises:
            XTunerError: there is no row.
        """
        self._write_group()
        self._close()
        if not self._files:
            raise XTunerError("there is no record to write.")
        total = len(self._files)
        for number, file in enumerate(self._files):
            file.replace(file.with_name(f"train-{number:05d}-of-{total:05d}.parquet"))
        if self.folder.exists():
            self.folder.rmdir()
        publish(self._unfinished, self.folder)
        return total

    def _write_group(self) -> None:
        if not self._rows:
            return
        if self._writer is None:
            file = self._unfinished / "data" / f"{len(self._files)}.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            texts = [name for name in self.schema.names if name not in ("images", "videos")]
            self._writer = pq.ParquetWriter(
                file,
                self.schema,
                use_dictionary=_leaves(self.schema, texts),
                compression={
                    leaf: "none" if leaf in _STORED else "zstd" for leaf in _leaves(self.schema, self.schema.names)
                },
                write_page_index=True,
            )
            self._files.append(file)
        self._writer.write_table(pa.Table.from_pylist(self._rows, self.schema), row_group_size=len(self._rows))
        self._rows, self._bytes = [], 0
        if os.path.getsize(self._files[-1]) >= self.shard_bytes:
            self._close()

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _leaves(schema: pa.Schema, names: list[str]) -> list[str]:
    """The paths of the columns of numbers and texts within `names`, as Parquet calls them."""
    sink = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), sink)
    columns = pq.ParquetFile(pa.BufferReader(sink.getvalue())).schema
    paths = [columns.column(number).path for number in range(len(columns))]
    return [path for path in paths if path.split(".")[0] in names]
