"""Rows of several files as one table, and how many record batches stay open."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from xtuner.data.store import arrow_rows
from xtuner.data.store.arrow_rows import ArrowRows


@pytest.fixture
def rows(tmp_path: Path) -> ArrowRows:
    """Numbers from 0 on: batches of 2, 3 and 1 rows in one file, of 4 in another."""
    first = 0
    for file, sizes in enumerate([[2, 3, 1], [4]]):
        schema = pa.schema({"number": pa.int64()})
        with pa.OSFile(str(tmp_path / f"{file}.arrow"), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for size in sizes:
                writer.write_batch(pa.record_batch([pa.array(range(first, first + size))], schema=schema))
                first += size
    return ArrowRows([tmp_path / "0.arrow", tmp_path / "1.arrow"], [[2, 3, 1], [4]])


def number(rows: ArrowRows, row: int) -> int:
    batch, place = rows.locate(row)
    return batch.column("number")[place].as_py()


def test_rows_are_found(rows: ArrowRows) -> None:
    assert len(rows) == 10 and [number(rows, row) for row in range(10)] == list(range(10))
    assert rows.column("number").to_pylist() == list(range(10))
    for outside in (-1, 10):
        with pytest.raises(IndexError):
            rows.locate(outside)


def test_few_batches_stay_open(rows: ArrowRows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow_rows, "_MOST_BATCHES", 2)
    for _ in range(2):
        assert [number(rows, row) for row in range(10)] == list(range(10))
        assert len(rows._batches) <= 2
