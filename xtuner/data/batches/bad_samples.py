"""Samples that training leaves out: what stands for those that cannot be read, and the account of all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

_TRIES = 10


@dataclass(frozen=True)
class BadSample:
    """One sample that was left out.

    Attributes:
        sample_id: its id.
        index: its number in the data set; -1 where nobody knows it.
        kind: of fault, by which they are counted.
        message: what is wrong with it.
        is_fault: False where it could be read, but teaches nothing: that ends no run.
    """

    sample_id: str
    index: int
    kind: str
    message: str
    is_fault: bool = True


class Replacements:
    """Which samples stand for one that cannot be read: always the same ones, and hardly ever longer ones.

    Args:
        lengths: tokens of each sample.
    """

    def __init__(self, lengths: np.ndarray) -> None:
        self._lengths = lengths
        self._order: np.ndarray | None = None

    def of(self, index: int) -> Iterator[int]:
        """Yields `index`, then the next shorter samples; the shortest are followed by the next longer ones."""
        yield index
        if self._order is None:
            # only now: most runs never need it
            self._order = np.argsort(self._lengths, kind="stable")
        place = int(np.searchsorted(self._lengths[self._order], self._lengths[index]))
        # among equally long ones by number
        place += int(np.searchsorted(self._same_length(place), index))
        shorter = self._order[max(0, place - _TRIES) : place][::-1]
        longer = self._order[place + 1 : place + 1 + _TRIES - len(shorter)]
        yield from (int(other) for other in (*shorter, *longer))

    def _same_length(self, place: int) -> np.ndarray:
        assert self._order is not None
        ordered = self._lengths[self._order]
        return self._order[place : int(np.searchsorted(ordered, ordered[place], "right"))]
