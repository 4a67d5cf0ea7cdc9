"""The learning rate as a pure function of the optimizer step, so that resuming needs no state."""

from __future__ import annotations

import math
from collections.abc import Callable


class WarmupCosine:
    """Linear warm-up, then half a cosine down to zero.

    With S steps in all and W = ceil(warmup_ratio * S), step s (from 0) uses the peak rate times ``(s + 1) /
    W`` while s < W, else ``(1 + cos(pi * (s - W) / (S - W))) / 2``: the peak is reached by the last warm-up
    step, and zero would be reached by the step after the last, so that no step is spent with a rate of zero.

    Args:
        warmup_ratio: share of the steps that warm up, 0 to 1.
        max_epochs: passes over the data; used where `max_iters` is None. May be a fraction.
        max_iters: optimizer steps in all.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(self, warmup_ratio: float = 0.03, max_epochs: float | None = 1, max_iters: int | None = None) -> None:
        if not 0 <= warmup_ratio <= 1:
            raise ValueError(f"warmup_ratio is {warmup_ratio}: expected a share between 0 and 1.")
        if max_iters is None and max_epochs is None:
            raise ValueError("max_epochs and max_iters are both None: set one of them.")
        for name, value in (("max_epochs", max_epochs), ("max_iters", max_iters)):
            if value is not None and value <= 0:
                raise ValueError(f"{name} is {value}: expected more than 0.")
        self.warmup_ratio = warmup_ratio
        self.max_epochs = max_epochs
        self.max_iters = max_iters

    def total_steps(self, steps_in: Callable[[float], int]) -> int:
        """Returns the optimizer steps of the run: `max_iters`, else what `steps_in` says of `max_epochs`."""
        if self.max_iters is not None:
            return self.max_iters
        assert self.max_epochs is not None
        return max(1, steps_in(self.max_epochs))

    def factor(self, step: int, total: int) -> float:
        """Returns the share of the peak rate that optimizer step `step` (from 0) of `total` uses."""
        # the tiny subtraction keeps 0.1 * 30 = 3.0000000000000004 at 3 steps
        warmup = math.ceil(self.warmup_ratio * total - 1e-9)
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
