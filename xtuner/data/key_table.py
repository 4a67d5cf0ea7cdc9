"""Rows found by a text key without holding the keys: sorted 64-bit hashes, memory-mapped."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np


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
        # plain arrays on the mapped file, each in one piece: searching anything else would copy it
        self._hashes, self._rows = np.asarray(np.load(path, mmap_mode="r"))

    def __len__(self) -> int:
        return len(self._hashes)

    def rows(self, key: str) -> list[int]:
        """Returns the rows with the hash of `key`, rising; usually one or none."""
        wanted = hash_key(key)
        number = len(self._hashes)
        # hashes are spread evenly, so the place is known to within about half the root of their number: a search there
        # reads one page of the file or two, a search in the whole table some twenty
        guess, reach = wanted * number >> 64, math.isqrt(number) + 1
        while True:
            low, high = max(0, guess - reach), min(number, guess + reach)
            near = self._hashes[low:high]
            start, end = (int(near.searchsorted(np.uint64(wanted), side)) for side in ("left", "right"))
            if (start > 0 or low == 0) and (end < len(near) or high == number):
                return self._rows[low + start : low + end].tolist()
            reach *= 8

    @staticmethod
    def save(path: Path, hashes: Sequence[int] | np.ndarray, rows: Sequence[int] | np.ndarray) -> None:
        """Writes the table of `hashes` (of `hash_key`) and the rows that they belong to."""
        table = np.array([hashes, rows], np.uint64).reshape(2, -1)
        with open(path, "wb") as file:
            np.save(file, table[:, np.lexsort((table[1], table[0]))])

    def repeated(self) -> Iterator[list[int]]:
        """Yields the rows of each hash that stands more than once."""
        same = np.flatnonzero(self._hashes[1:] == self._hashes[:-1]) + 1
        for group in np.split(same, np.flatnonzero(np.diff(same) > 1) + 1) if len(same) else []:
            yield self._rows[group[0] - 1 : group[-1] + 1].tolist()
