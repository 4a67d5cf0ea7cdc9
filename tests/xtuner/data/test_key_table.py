from __future__ import annotations

from pathlib import Path

import numpy as np

from xtuner.data.bad_samples import Replacements
from xtuner.data.key_table import KeyTable, hash_key


def test_rows_of_keys(tmp_path: Path) -> None:
    keys = [f"k{number % 50}" for number in range(60)]
    KeyTable.save(tmp_path / "t", [hash_key(key) for key in keys], range(60))
    table = KeyTable(tmp_path / "t")
    assert len(table) == 60
    assert table.rows("k3") == [3, 53] and table.rows("k20") == [20] and table.rows("x") == []
    assert sorted(table.repeated()) == [[number, number + 50] for number in range(10)]


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
