"""An Arrow file, memory-mapped: rows in order, and the bytes of one picture at its place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from xtuner.data.tables.cells import cell_bytes, read_cells
from xtuner.data.tables.parquet import Batch
from xtuner.errors import XTunerError, reason_of


class ArrowTable:
    """One Arrow file, of the form of a file or of a stream (as `datasets` writes). Pickles as its path.

    Args:
        path: of the file.

    Raises:
        XTunerError: it is no Arrow file, or is damaged.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            source = pa.memory_map(path)
            try:
                reader = pa.ipc.open_file(source)
                self._batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
            except pa.ArrowInvalid:
                source.seek(0)
                reader = pa.ipc.open_stream(source)
                self._batches = list(reader)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise self._damaged(error) from error
        self.schema: pa.Schema = reader.schema
        self._ends = np.cumsum([len(batch) for batch in self._batches], dtype=np.int64)
        self._checked: set[int] = set()

    def __len__(self) -> int:
        """Number of rows."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def text_bytes(self, columns: Sequence[str]) -> int:
        """Returns how many bytes the values of `columns` take."""
        return sum(batch.column(name).nbytes for batch in map(self._batch, self._numbers()) for name in columns)

    def batches(self, columns: Sequence[str], pictures: str | None = None, spots: bool = False) -> Iterator[Batch]:
        """Yields all rows in order: the text `columns`, and what the cells of the column `pictures` hold.

        Args:
            columns: to read.
            pictures: column of pictures.
            spots: nothing here: each cell can be read alone as it is.

        Raises:
            XTunerError: the file is damaged.
        """
        for batch in map(self._batch, self._numbers()):
            yield batch.select(list(columns)), None if pictures is None else read_cells(batch.column(pictures))

    def bytes_of(self, column: str, row: int, number: int) -> bytes | None:
        """Returns the bytes of picture `number` of a row's cell; None where there are none.

        Raises:
            XTunerError: the file is damaged.
        """
        if not 0 <= row < len(self):
            return None
        place = int(np.searchsorted(self._ends, row, "right"))
        first = int(self._ends[place - 1]) if place else 0
        return cell_bytes(self._batch(place).column(column)[row - first].as_py(), number)

    def _numbers(self) -> range:
        return range(len(self._batches))

    def _batch(self, number: int) -> pa.RecordBatch:
        batch = self._batches[number]
        if number not in self._checked:
            try:
                # a stranger's offsets may lead out of the file
                batch.validate(full=True)
            except pa.ArrowException as error:
                raise self._damaged(error) from error
            self._checked.add(number)
        return batch

    def _damaged(self, error: Exception) -> XTunerError:
        reason = reason_of(error)
        return XTunerError(f"the Arrow file '{self.path}' cannot be read ({reason}): copy it again.")

    def __reduce__(self) -> tuple[type[ArrowTable], tuple[str]]:
        return type(self), (self.path,)
