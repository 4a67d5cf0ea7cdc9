"""Which samples an epoch sees where sources are seen more or less often than once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class Mixture:
    """Samples of several sources, each source seen `repeats` times an epoch.

    Args:
        count: number of samples.
        source_of: number of the source of each sample; None = all of source 0.
        repeats: of each source, above 0. The whole part is how often every sample comes, the fraction the share that
            comes once more, drawn anew each epoch.
    """

    def __init__(self, count: int, source_of: np.ndarray | None = None, repeats: Sequence[float] = (1.0,)) -> None:
        self.count = count
        self.plain = all(value == 1 for value in repeats)
        self.repeats = list(repeats)
        self._members: list[np.ndarray] = []
        if not self.plain:
            of = np.zeros(count, np.int64) if source_of is None else np.asarray(source_of)
            self._members = [np.flatnonzero(of == number) for number in range(len(self.repeats))]

    @property
    def size(self) -> int:
        """Samples of an epoch: the same for every epoch, at least one."""
        if self.plain:
            return self.count
        shares = zip(self.repeats, self._members, strict=True)
        return max(1, sum(int(repeats) * len(members) + self._extra(repeats, members) for repeats, members in shares))

    def samples(self, generator: np.random.Generator) -> np.ndarray:
        """Returns the samples of an epoch, in no order; `generator` draws those of the fractions."""
        if self.plain:
            return np.arange(self.count)
        parts = []
        for repeats, members in zip(self.repeats, self._members, strict=True):
            parts += [members] * int(repeats)
            parts.append(generator.choice(members, self._extra(repeats, members), replace=False))
        chosen = np.concatenate(parts)
        return chosen if len(chosen) else np.zeros(1, np.int64)

    def order_inputs(self) -> list[np.ndarray]:
        """Returns what an epoch's samples depend on beside their number: nothing where each is seen once."""
        return [] if self.plain else [np.asarray(self.repeats, np.float64), *self._members]

    @staticmethod
    def _extra(repeats: float, members: np.ndarray) -> int:
        return round((repeats - int(repeats)) * len(members))
