"""Random draws that are the same on every machine and with every numpy: whole numbers from raw PCG64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


class Dice:
    """A stream of whole-number draws named by a tuple of keys.

    numpy guarantees the raw output of PCG64 and SeedSequence, but not that of Generator's methods; floats are
    avoided for the same reason.

    Args:
        keys: Non-negative numbers that name the stream, for example (seed, split, index).
    """

    def __init__(self, *keys: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(keys))

    def below(self, limit: int) -> int:
        """Returns a number from 0 to ``limit`` - 1."""
        return (int(self._bits.random_raw()) * limit) >> 64

    def between(self, low: int, high: int) -> int:
        """Returns a number from ``low`` to ``high``, both included."""
        return low + self.below(high - low + 1)

    def percent(self, chance: int) -> bool:
        """Returns true in ``chance`` of 100 cases."""
        return self.below(100) < chance

    def choice(self, options: Sequence[T]) -> T:
        """Returns one of the options."""
        return options[self.below(len(options))]

    def sample(self, options: Sequence[T], count: int) -> list[T]:
        """Returns ``count`` different options in random order."""
        left = list(options)
        return [left.pop(self.below(len(left))) for _ in range(count)]

    def bytes_below_8(self, height: int, width: int) -> np.ndarray:
        """Returns a (height, width) uint8 array of numbers from 0 to 7."""
        raw = np.asarray(self._bits.random_raw(height * width), dtype=np.uint64)
        return (raw >> np.uint64(61)).astype(np.uint8).reshape(height, width)
