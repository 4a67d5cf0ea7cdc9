"""A Parquet file: rows in order without the bytes of their pictures, and one picture's bytes from its row group."""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from xtuner.data.tables.cells import BYTES, PictureCells, bytes_column, cell_bytes, holds_bytes, is_list, read_cells
from xtuner.errors import XTunerError, reason_of

MOST_PICTURE_BYTES = 256 << 20
"""Most bytes of the pictures of a compressed row group: to read one picture the whole group is read."""
_BATCH = 500
_BATCH_WITH_BYTES = 16
_BUFFER = 1 << 20

Batch = tuple[pa.RecordBatch, "PictureCells | None"]


class ParquetTable:
    """One Parquet file. Threads may share it; a forked process opens it anew.

    Args:
        path: of the file.

    Raises:
        XTunerError: it is no Parquet file, or is cut off.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._process = -1
        self._kept: tuple[int, str, pa.ChunkedArray] | None = None
        self._walk: tuple[str, Iterator[pa.RecordBatch], int, pa.Array] | None = None
        with self._reading():
            file = self._open()
            self.schema: pa.Schema = file.schema_arrow
            self._leaves = [file.schema.column(number).path for number in range(len(file.schema))]
            sizes = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
        self._ends = np.cumsum(sizes, dtype=np.int64)

    def __len__(self) -> int:
        """Number of rows."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def text_bytes(self, columns: Sequence[str]) -> int:
        """Returns how many bytes the values of `columns` take, unpacked."""
        return sum(sum(self._sizes(name)) for name in columns)

    def largest_group(self, column: str) -> int:
        """Returns the bytes of a column in the largest row group whose pictures cannot be read alone."""
        groups = range(len(self._ends))
        return max((self._size(group, column) for group in groups if not self._is_plain(group, column)), default=0)

    def bytes_per_picture(self, column: str) -> int:
        """Returns how many bytes are read to have one picture of a column, on average; 0 where each is read alone."""
        groups = range(len(self._ends))
        read = sum(self._rows(group) * self._size(group, column) for group in groups if self._is_shared(group, column))
        return read // max(1, len(self))

    def batches(self, columns: Sequence[str], pictures: str | None = None, spots: bool = False) -> Iterator[Batch]:
        """Yields all rows in order: the text `columns`, and what the cells of the column `pictures` hold.

        Args:
            columns: to read.
            pictures: column of pictures.
            spots: look for the places of their bytes in the file, where these are not compressed.

        Raises:
            XTunerError: the file is damaged.
        """
        file = self._open(in_order=True)
        leaves = [leaf for name in columns for leaf in self._leaves_of(name)]
        with self._reading():
            for group in range(file.num_row_groups):
                if spots and pictures is not None and self._is_plain(group, pictures):
                    yield from self._plain_batches(file, group, leaves, pictures)
                else:
                    yield from self._group_batches(file, group, leaves, pictures)

    def bytes_of(self, column: str, row: int, number: int) -> bytes | None:
        """Returns the bytes of picture `number` of a row's cell; None where there are none.

        Raises:
            XTunerError: the file is damaged, or its row group is too large to be read for one picture.
        """
        if not 0 <= row < len(self):
            return None
        group = int(np.searchsorted(self._ends, row, "right"))
        first = int(self._ends[group - 1]) if group else 0
        with self._lock:
            return cell_bytes(self._column(group, column)[row - first].as_py(), number)

    def next_bytes_of(self, column: str, row: int, number: int) -> bytes | None:
        """Like `bytes_of`, for rows that are asked for in order: of a row group a few rows stand in memory at a time.

        Raises:
            XTunerError: the file is damaged.
        """
        if not 0 <= row < len(self):
            return None
        if self._walk is None or self._walk[0] != column or row < self._walk[2]:
            leaves, group = self._bytes_leaves(column), int(np.searchsorted(self._ends, row, "right"))
            groups = list(range(group, len(self._ends)))
            batches = self._open(in_order=True).iter_batches(_BATCH_WITH_BYTES, groups, leaves, use_threads=False)
            self._walk = (column, batches, int(self._ends[group - 1]) if group else 0, pa.array([]))
        with self._reading():
            _, batches, first, cells = self._walk
            while row >= first + len(cells):
                first, cells = first + len(cells), next(batches).column(column)
        self._walk = (column, batches, first, cells)
        return cell_bytes(cells[row - first].as_py(), number)

    def _column(self, group: int, column: str) -> pa.ChunkedArray:
        if self._kept is None or self._kept[:2] != (group, column) or self._process != os.getpid():
            file = self._open()
            if (size := self._size(group, column)) > MOST_PICTURE_BYTES:
                raise large_row_group(self.path, size)
            with self._reading():
                table = file.read_row_group(group, columns=self._bytes_leaves(column), use_threads=False)
            self._kept = (group, column, table.column(column))
        return self._kept[2]

    def _sizes(self, column: str) -> list[int]:
        return [self._size(group, column) for group in range(len(self._ends))]

    def _size(self, group: int, column: str) -> int:
        """Unpacked bytes of a column in a row group."""
        with self._reading():
            part = self._open().metadata.row_group(group)
            leaves = map(self._leaves.index, self._leaves_of(column))
            return sum(part.column(leaf).total_uncompressed_size for leaf in leaves)

    def _group_batches(
        self, file: pq.ParquetFile, group: int, leaves: Sequence[str], pictures: str | None
    ) -> Iterator[Batch]:
        wanted, has_bytes, size = list(leaves), None, _BATCH
        if pictures is not None:
            light, has_bytes = self._light(file, group, pictures)
            wanted += light
            size = _BATCH_WITH_BYTES if has_bytes is None and light else _BATCH
        start = 0
        for batch in file.iter_batches(size, row_groups=[group], columns=wanted, use_threads=False):
            if pictures is None:
                yield batch, None
                continue
            cells = read_cells(batch.column(pictures), None) if pictures in batch.schema.names else None
            if cells is None:
                # a column of nothing but bytes, none of them null
                cells = PictureCells([1] * len(batch), False, np.ones(len(batch), bool), [None] * len(batch))
            elif has_bytes is not None:
                end = start + len(cells.paths)
                cells = PictureCells(cells.counts, cells.in_lists, has_bytes[start:end], cells.paths)
                start = end
            yield batch, cells

    def _is_plain(self, group: int, column: str) -> bool:
        """Says whether a row group holds the bytes of pictures as they are."""
        if not holds_bytes(self.schema.field(column).type):
            return False
        with self._reading():
            part = self._open().metadata.row_group(group)
            return str(part.column(self._leaves.index(self._bytes_leaves(column)[0])).compression) == "UNCOMPRESSED"

    def _rows(self, group: int) -> int:
        return int(self._ends[group] - (self._ends[group - 1] if group else 0))

    def _is_shared(self, group: int, column: str) -> bool:
        """Says whether one picture of a row group takes reading others."""
        holds = holds_bytes(self.schema.field(column).type)
        return holds and self._rows(group) > 1 and not self._is_plain(group, column)

    def _plain_batches(self, file: pq.ParquetFile, group: int, leaves: Sequence[str], pictures: str) -> Iterator[Batch]:
        """Like `_group_batches`, with the place of each picture: where the same bytes stand in the file."""
        part = file.metadata.row_group(group).column(self._leaves.index(self._bytes_leaves(pictures)[0]))
        first = part.data_page_offset
        if part.has_dictionary_page and part.dictionary_page_offset is not None:
            first = min(first, part.dictionary_page_offset)
        end, place, lost = first + part.total_compressed_size, first, False
        wanted = [*leaves, *self._leaves_of(pictures)]
        with open(self.path, "rb") as raw, mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ) as content:
            for batch in file.iter_batches(_BATCH_WITH_BYTES, row_groups=[group], columns=wanted, use_threads=False):
                cells = read_cells(batch.column(pictures))
                spots: list[tuple[int, int] | None] = []
                for value in bytes_column(batch.column(pictures)):
                    # once one is not there the encoding is another, and looking on would cost the square of the group
                    found = value.as_py() if value.is_valid and not lost else None
                    at = -1 if found is None else content.find(found, place, end)
                    if found is not None and at < 0:
                        # of several equal ones a dictionary keeps the first
                        at = content.find(found, first, end)
                    lost = lost or (found is not None and at < 0)
                    spots.append(None if found is None or at < 0 else (at, len(found)))
                    place = max(place, at + len(found)) if found is not None else place
                yield batch, replace(cells, spots=spots)

    def _light(self, file: pq.ParquetFile, group: int, column: str) -> tuple[list[str], np.ndarray | None]:
        """The leaves of a picture column to read, and which of its pictures have bytes where that is known without."""
        leaves, of_bytes = self._leaves_of(column), self._bytes_leaves(column)
        others = [leaf for leaf in leaves if leaf not in of_bytes]
        kind = self.schema.field(column).type
        if not holds_bytes(kind):
            return leaves, None
        part = file.metadata.row_group(group).column(self._leaves.index(of_bytes[0]))
        statistics = part.statistics if part.is_stats_set else None
        if statistics is None or not statistics.has_null_count:
            return leaves, None
        filled = part.num_values - statistics.null_count
        if not others:
            full = filled == file.metadata.row_group(group).num_rows and not is_list(kind)
            return ([], None) if full else (leaves, None)
        table = file.read_row_group(group, columns=others, use_threads=False)
        cells = [read_cells(chunk) for chunk in table.column(column).chunks]
        number = sum(len(cell.paths) for cell in cells)
        if filled not in (0, number):
            return leaves, None
        return others, np.full(number, filled == number and number > 0)

    def _leaves_of(self, column: str) -> list[str]:
        return [leaf for leaf in self._leaves if leaf == column or leaf.startswith(f"{column}.")]

    def _bytes_leaves(self, column: str) -> list[str]:
        """The leaves of a picture column that hold bytes; all where none is called so."""
        leaves = self._leaves_of(column)
        return [leaf for leaf in leaves if leaf.rpartition(".")[2] == BYTES] or leaves

    def _open(self, in_order: bool = False) -> pq.ParquetFile:
        """The file, to be read a part at a time where it is read in order, else a whole part of a row group at once."""
        # a forked process must not share the parent's handle
        if self._process != os.getpid():
            self._files: dict[bool, pq.ParquetFile] = {}
            self._process, self._kept, self._walk = os.getpid(), None, None
        if in_order not in self._files:
            metadata = next((file.metadata for file in self._files.values()), None)
            size = _BUFFER if in_order else 0
            self._files[in_order] = pq.ParquetFile(
                _opened(self.path), metadata=metadata, buffer_size=size, pre_buffer=False
            )
        return self._files[in_order]

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """What goes wrong with the file's bytes becomes one sentence."""
        try:
            yield
        except XTunerError:
            raise
        except (pa.ArrowException, OSError, ValueError, OverflowError, KeyError, IndexError) as error:
            reason = reason_of(error)
            raise XTunerError(f"the Parquet file '{self.path}' cannot be read ({reason}): copy it again.") from error

    def __reduce__(self) -> tuple[type[ParquetTable], tuple[str]]:
        return type(self), (self.path,)


def large_row_group(path: str, size: int) -> XTunerError:
    """Says that a row group is too large to be read for one picture."""
    return XTunerError(
        f"a row group of '{Path(path).name}' has {size / 1e6:,.0f} MB of pictures, and reading one picture reads its "
        f"whole group, of at most {MOST_PICTURE_BYTES / 1e6:,.0f} MB: `xtuner convert dataset` writes the data so that "
        "each picture is read alone."
    )


def _opened(path: str) -> Any:
    """A local path as it is, a remote address as an open file."""
    if "://" not in path:
        return path
    import fsspec

    return fsspec.open(path, "rb").open()
