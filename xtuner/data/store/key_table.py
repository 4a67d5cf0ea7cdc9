"""Rows found by a text key without holding the keys: sorted 64-bit hashes in a file."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xtuner.data.store.arrays import load_array


def hash_key(key: str) -> int:
    """Returns the 64-bit hash of a key."""
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


class KeyTable:
    """Finds the rows that may belong to a key.

    Two keys share a hash once in 10^7 tables of a million keys; whoever asks compares the row's own key, so that even
    then the answer is right.

    Args:
        path: of the file that `save` wrote.
    """

    def __init__(self, path: Path) -> None:
        table: Any = load_array(path, mmap_mode="r")
        self._path, self._number, self._start = path, table.size // 2, int(table.offset)
        # read, not mapped: Linux maps up to 2 MB around each place that is looked at, in the end the whole file
        self._file = open(path, "rb")  # noqa: SIM115

    def __len__(self) -> int:
        return self._number

    def rows(self, key: str) -> list[int]:
        """Returns the rows with the hash of `key`, rising; usually one or none."""
        wanted = hash_key(key)
        number = self._number
        # hashes are spread evenly, so the place is known to within about half the root of their number
        guess, reach = wanted * number >> 64, math.isqrt(number) + 1
        while True:
            low, high = max(0, guess - reach), min(number, guess + reach)
            near = self._read(low, high)
            start, end = (int(near[:, 0].searchsorted(np.uint64(wanted), side)) for side in ("left", "right"))
            if (start > 0 or low == 0) and (end < len(near) or high == number):
                return near[start:end, 1].tolist()
            reach *= 8

    def _read(self, low: int, high: int) -> np.ndarray:
        """Reads pairs `low` to `high`, (number, 2)."""
        # at a place of its own: processes that were forked share the file's position
        found = os.pread(self._file.fileno(), 16 * (high - low), self._start + 16 * low)
        return np.frombuffer(found, np.uint64).reshape(-1, 2)

    @staticmethod
    def save(path: Path, hashes: Sequence[int] | np.ndarray, rows: Sequence[int] | np.ndarray) -> None:
        """Writes the table of `hashes` (of `hash_key`) and the rows that they belong to."""
        table = np.array([hashes, rows], np.uint64).reshape(2, -1)
        # pairs: what is found stands beside its hash
        pairs = np.ascontiguousarray(table[:, np.lexsort((table[1], table[0]))].T)
        with open(path, "wb") as file:
            np.save(file, pairs)

    def repeated(self) -> Iterator[list[int]]:
        """Yields the rows of each hash that stands more than once."""
        hashes, rows = load_array(self._path, mmap_mode="r").reshape(-1, 2).T
        same = np.flatnonzero(hashes[1:] == hashes[:-1]) + 1
        for group in np.split(same, np.flatnonzero(np.diff(same) > 1) + 1) if len(same) else []:
            yield rows[group[0] - 1 : group[-1] + 1].tolist()
