from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xtuner.data.batches.bad_samples import Replacements
from xtuner.data.store import key_table
from xtuner.data.store.key_table import KeyTable, hash_key


def test_rows_of_keys(tmp_path: Path) -> None:
    keys = [f"k{number % 50}" for number in range(60)]
    KeyTable.save(tmp_path / "t", [hash_key(key) for key in keys], range(60))
    table = KeyTable(tmp_path / "t")
    assert len(table) == 60
    assert table.rows("k3") == [3, 53] and table.rows("k20") == [20] and table.rows("x") == []
    assert sorted(table.repeated()) == [[number, number + 50] for number in range(10)]


@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 300), max_size=400), st.integers(0, 2**64 - 1))
def test_hashes_spread_in_any_way(hashes: list[int], absent: int) -> None:
    """Also where they are not where evenly spread ones would be."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(key_table, "hash_key", int)
        KeyTable.save(Path(folder) / "t", hashes, range(len(hashes)))
        table = KeyTable(Path(folder) / "t")
        for wanted in {*hashes, absent, 0, 2**64 - 1}:
            assert table.rows(str(wanted)) == [row for row, found in enumerate(hashes) if found == wanted]


def test_many_keys(tmp_path: Path) -> None:
    keys = [f"coco/{number}.jpg" for number in range(30_000)]
    KeyTable.save(tmp_path / "t", [hash_key(key) for key in keys], range(len(keys)))
    table = KeyTable(tmp_path / "t")
    assert all(table.rows(key) == [row] for row, key in enumerate(keys)) and table.rows("x") == []


def test_an_empty_table(tmp_path: Path) -> None:
    KeyTable.save(tmp_path / "t", [], [])
    assert KeyTable(tmp_path / "t").rows("a") == [] and not list(KeyTable(tmp_path / "t").repeated())


def test_replacements_are_shorter_and_always_the_same() -> None:
    lengths = np.array([5, 3, 9, 3, 7, 5])
    found = Replacements(lengths)
    assert list(found.of(4)) == [4, 5, 0, 3, 1, 2]
    assert list(found.of(4)) == list(Replacements(lengths).of(4))
    # the shortest have only longer ones
    assert list(found.of(1)) == [1, 3, 0, 5, 4, 2]
    assert list(Replacements(np.array([4])).of(0)) == [0]
