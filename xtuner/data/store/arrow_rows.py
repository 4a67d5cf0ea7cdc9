"""Memory-mapped Arrow files as one long table: opened in no time, rows read where they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

_MOST_BATCHES = 1000
"""Kept open: some kilobytes each, in every worker; opening one again takes microseconds."""


class ArrowRows:
    """Rows of record batches in several Arrow files.

    Nothing is read before a row is asked for, and then only its own pages, which all processes of a machine share.
    Pickles as its paths, so that a worker process opens the files itself.

    Args:
        files: Arrow IPC files.
        rows_of_batches: of each file, the rows of its record batches.
    """

    def __init__(self, files: Sequence[Path], rows_of_batches: Sequence[Sequence[int]]) -> None:
        self._files = list(files)
        self._rows_of_batches = [list(rows) for rows in rows_of_batches]
        self._places = [(file, number) for file, rows in enumerate(rows_of_batches) for number in range(len(rows))]
        self._ends = np.array(list(accumulate(count for rows in rows_of_batches for count in rows)), np.int64)
        self._readers: dict[int, pa.ipc.RecordBatchFileReader] = {}
        self._batches: dict[int, pa.RecordBatch] = {}

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __reduce__(self) -> tuple[type[ArrowRows], tuple[list[Path], list[list[int]]]]:
        return type(self), (self._files, self._rows_of_batches)

    def locate(self, row: int) -> tuple[pa.RecordBatch, int]:
        """Returns the record batch that holds `row`, and the row's number in it.

        Raises:
            IndexError: there is no such row.
        """
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        batch = int(np.searchsorted(self._ends, row, "right"))
        first = int(self._ends[batch - 1]) if batch else 0
        return self.batch(batch), row - first

    def batch(self, number: int) -> pa.RecordBatch:
        """Returns record batch `number`, counted over all files."""
        if number not in self._batches:
            file, within = self._places[number]
            if file not in self._readers:
                self._readers[file] = pa.ipc.open_file(pa.memory_map(str(self._files[file])))
            if len(self._batches) >= _MOST_BATCHES:
                self._batches.clear()
            self._batches[number] = self._readers[file].get_batch(within)
        return self._batches[number]

    def column(self, name: str) -> pa.ChunkedArray:
        """Returns a whole column as it lies in the files; of type null where there are no rows."""
        parts = [self.batch(number).column(name) for number in range(len(self._places))]
        return pa.chunked_array(parts or [pa.nulls(0)])

    def values(self, *names: str) -> Iterator[tuple[Any, ...]]:
        """Yields each row's values of the columns `names`; a batch at a time stands in memory."""
        for number in range(len(self._places)):
            batch = self.batch(number)
            yield from zip(*(batch.column(name).to_pylist() for name in names), strict=True)


def list_values(batch: pa.RecordBatch, name: str, row: int) -> np.ndarray:
    """Returns the numbers of a list column's row, without a copy (read-only)."""
    column = batch.column(name)
    start, end = column.offsets[row].as_py(), column.offsets[row + 1].as_py()
    return column.values[start:end].to_numpy()


def list_array(lists: Sequence[Any], value_type: pa.DataType) -> pa.ListArray:
    """Returns a list column of `lists`."""
    return pa.array(lists, type=pa.list_(value_type))
