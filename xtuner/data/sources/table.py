"""Records of Parquet and Arrow files: rows without their pictures and videos, which are named by their places."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from xtuner.data.records.records import Record
from xtuner.data.sources.columns import PICTURES, TALKS, VIDEOS, as_messages, check_talk_type, choose_columns
from xtuner.data.sources.locate import SourceFiles
from xtuner.data.sources.places import Place, bytes_spot, cell_spot
from xtuner.data.store.cache import remembered_of
from xtuner.data.tables.arrow import ArrowTable
from xtuner.data.tables.cells import PictureCells, holds_bytes, is_picture_type
from xtuner.data.tables.parquet import MOST_PICTURE_BYTES, ParquetTable, large_row_group
from xtuner.errors import XTunerError

_LONGEST_PATH = 1024
_NO_PATHS = ("http://", "https://", "data:")


def open_table(path: str, kind: str) -> ParquetTable | ArrowTable:
    """Opens a file of rows.

    Raises:
        XTunerError: it is damaged.
    """
    return ParquetTable(path) if kind == "parquet" else ArrowTable(path)


class TableSource:
    """Records of Parquet or Arrow files.

    Args:
        found: the files.
        columns: the column of a field, where its name is not the field's.
        random_access: pictures and videos will be read one by one, in any order.
    """

    def __init__(self, found: SourceFiles, columns: Mapping[str, str], random_access: bool = True) -> None:
        self.data_path = found.data_path
        self.found = found
        self.columns = dict(columns)
        self.random_access = random_access

    def records(self, on_bytes: Callable[[int], None] | None = None) -> Iterator[Record | str]:
        """Yields a record per row; its pictures and videos are named by the places of their bytes where these can be
        read alone.

        Raises:
            XTunerError: a file is damaged or lacks a column, or a column is of another type.
        """
        yield from self._records(on_bytes, self.random_access)

    def _records(self, on_bytes: Callable[[int], None] | None, spots: bool) -> Iterator[Record | str]:
        first = read = 0
        for path, name in zip(self.found.files, self.found.names, strict=True):
            table = open_table(path, self.found.kind)
            chosen = self._choose(table)
            texts = _texts(table, chosen)
            pictures, videos = (_column(chosen, fields) for fields in (PICTURES, VIDEOS))
            rest = {column: None for column in table.schema.names if column not in chosen.values()}
            row, size = 0, table.text_bytes(list(texts.values()))
            clips = None
            if videos is not None and videos not in texts.values():
                clips = _videos(table, name, videos, next(iter(texts.values())), spots)
            for batch, cells in table.batches(list(texts.values()), pictures, spots):
                values = self._values(path, batch, texts)
                images = None if cells is None else _held(cells, name, str(pictures), row)
                for number in range(len(batch)):
                    value = {**rest, **{field: column[number] for field, column in values.items()}}
                    where = first + row + number
                    found = {"image": next(images, None)} if images is not None else {}
                    if clips is not None:
                        found["video"] = next(clips, None)
                    faults = [(field, one) for field, one in found.items() if isinstance(one, _Fault)]
                    if faults:
                        what = "picture" if faults[0][0] == "image" else "video"
                        yield f"bad {what}: record number {where + 1} of '{self.data_path}': {faults[0][1]}."
                    else:
                        yield Record({**value, **found}, where)
                row += len(batch)
                if on_bytes is not None:
                    on_bytes(read + size * row // max(1, len(table)))
            first, read = first + row, read + size

    def size(self) -> int:
        """Returns the bytes of what is said, pictures and videos left out."""
        tables = (open_table(path, self.found.kind) for path in self.found.files)
        return sum(table.text_bytes(list(_texts(table, self._choose(table)).values())) for table in tables)

    def cost_note(self) -> str | None:
        """Says how much is read for a picture or video of the first file where that is more than itself."""
        table = open_table(self.found.files[0], self.found.kind)
        chosen = self._choose(table)
        if not isinstance(table, ParquetTable):
            return None
        for fields, what in ((PICTURES, "pictures"), (VIDEOS, "videos")):
            column = _column(chosen, fields)
            cost = 0 if column is None else table.bytes_per_picture(column)
            if cost:
                return (
                    f"'{self.data_path}' compresses its {what}, so that training reads and unpacks a row group of "
                    f"{cost / 1e6:,.1f} MB for each: `xtuner convert dataset` writes the data so that each is read "
                    "alone."
                )
        return None

    def identity(self) -> dict[str, Any]:
        """Returns path, number of records and digest of what they say; pictures count by their places."""
        what = json.dumps([self.found.names, self.columns], sort_keys=True)
        found = json.loads(remembered_of(self.found.files, what, lambda: records_digest(self._records(None, False))))
        return {"path": self.data_path, "size": found["records"], "digest": found["digest"]}

    def _choose(self, table: ParquetTable | ArrowTable) -> dict[str, str]:
        chosen = choose_columns(table.path, table.schema.names, self.columns)
        for field, column in chosen.items():
            kind = table.schema.field(column).type
            if field in TALKS:
                check_talk_type(table.path, column, kind)
            if field in PICTURES and not is_picture_type(kind):
                raise XTunerError(
                    f"column '{column}' of '{table.path}' is of type {kind}, and holds no pictures: expected bytes, "
                    "paths, an Image feature (a struct of bytes and path), or lists of these; if another column holds "
                    "them, set data_columns=dict(image='COLUMN')."
                )
            if field in VIDEOS and not (is_picture_type(kind) or pa.types.is_null(kind)):
                raise XTunerError(
                    f"column '{column}' of '{table.path}' is of type {kind}, and holds no videos: expected bytes, "
                    "paths, a Video feature (a struct of bytes and path), or lists of these. If another column holds "
                    "them, set data_columns=dict(video='COLUMN')."
                )
            if field in (*PICTURES, *VIDEOS) and self.random_access and isinstance(table, ParquetTable):
                largest = table.largest_group(column)
                if largest > MOST_PICTURE_BYTES:
                    raise large_row_group(table.path, largest)
        return chosen

    def _values(self, path: str, batch: pa.RecordBatch, texts: Mapping[str, str]) -> dict[str, list[Any]]:
        try:
            values = {field: batch.column(column).to_pylist() for field, column in texts.items()}
        except (pa.ArrowException, UnicodeDecodeError, ValueError, OverflowError) as error:
            raise XTunerError(f"'{path}' holds values that cannot be read ({error}): write it again.") from error
        return {f: [as_messages(v) for v in column] if f in TALKS else column for f, column in values.items()}


class _Fault(str):
    """What is wrong with a row's pictures, or its videos."""


def _texts(table: ParquetTable | ArrowTable, chosen: Mapping[str, str]) -> dict[str, str]:
    """The columns that are read as they are: paths of videos among them."""
    return {
        field: column
        for field, column in chosen.items()
        if field not in PICTURES and not (field in VIDEOS and holds_bytes(table.schema.field(column).type))
    }


def _column(chosen: Mapping[str, str], fields: Sequence[str]) -> str | None:
    return next((chosen[field] for field in fields if field in chosen), None)


def _videos(table: ParquetTable | ArrowTable, file: str, column: str, beside: str, spots: bool) -> Iterator[Any]:
    """Yields what each row's record has as ``video``, see `_held`; `beside` is a column of words, which is small."""
    row = 0
    for batch, cells in table.batches([beside], column, spots):
        assert cells is not None
        yield from _held(cells, file, column, row, "video")
        row += len(batch)


def _held(cells: PictureCells, file: str, column: str, first: int, what: str = "picture") -> Iterator[Any]:
    """Yields what each row's record has as ``image`` or ``video``: places or paths, None, or a `_Fault`."""
    start = 0
    for row, count in enumerate(cells.counts, start=first):
        found: list[str] = []
        fault = None
        for number in range(count or 0):
            has_bytes, path = cells.has_bytes[start + number], cells.paths[start + number]
            if has_bytes:
                at = None if cells.spots is None else cells.spots[start + number]
                spot = cell_spot(column, row, number if cells.in_lists else None) if at is None else bytes_spot(*at)
                found.append(str(Place(file, spot, path or "")))
            elif path:
                fault = fault or _path_fault(path, column)
                found.append(path)
            elif cells.in_lists:
                fault = _Fault(f"{what} {number + 1} of column '{column}' is null: it has neither bytes nor a path")
        start += count or 0
        yield fault or (found if cells.in_lists and count is not None else found[0] if found else None)


def _path_fault(path: str, column: str) -> _Fault | None:
    if len(path) <= _LONGEST_PATH and "\n" not in path and not path.startswith(_NO_PATHS):
        return None
    return _Fault(
        f"column '{column}' holds the text {path[:60]!r}..., expected a path relative to image_folder; pictures "
        "and videos themselves stand in columns of bytes, or of Image and Video features"
    )


def records_digest(records: Iterator[Record | str]) -> str:
    """Returns the number of records and a digest of all that they say, as JSON."""
    digest, count = hashlib.blake2b(digest_size=16), 0
    for item in records:
        content = item if isinstance(item, str) else json.dumps(item.value, sort_keys=True, default=str)
        digest.update(content.encode("utf-8", "surrogatepass") + b"\n")
        count += 1
    return json.dumps({"records": count, "digest": digest.hexdigest()})
