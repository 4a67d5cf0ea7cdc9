"""The learning rate as a pure function of the optimizer step, so that resuming needs no state."""

from __future__ import annotations

import math
from collections.abc import Callable


class Schedule:
    """Linear warm-up to the peak rate, then what a subclass says, down to a floor.

    With S steps in all and W steps of warm-up, step s (from 0) uses the peak rate times ``(s + 1) / W`` while s < W,
    then ``floor + (1 - floor) * shape(s - W, S - W, S)``.

    Args:
        warmup_ratio: share of the steps that warm up, 0 to 1, rounded up to whole steps.
        max_epochs: passes over the data; used where `max_iters` is None. May be a fraction.
        max_iters: optimizer steps in all.
        warmup_steps: steps that warm up, instead of a share.
        floor: share of the peak rate below which the rate does not fall after the warm-up, 0 to 1.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(
        self,
        warmup_ratio: float = 0.03,
        max_epochs: float | None = 1,
        max_iters: int | None = None,
        warmup_steps: int | None = None,
        floor: float = 0.0,
    ) -> None:
        check_share("warmup_ratio", warmup_ratio)
        check_share("floor", floor)
        if max_iters is None and max_epochs is None:
            raise ValueError("max_epochs and max_iters are both None: set one of them.")
        for name, value in (("max_epochs", max_epochs), ("max_iters", max_iters)):
            if value is not None and value <= 0:
                raise ValueError(f"{name} is {value}: expected more than 0.")
        check_steps("warmup_steps", warmup_steps)
        self.warmup_ratio = warmup_ratio
        self.warmup_steps = warmup_steps
        self.floor = floor
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
        warmup = steps_of(self.warmup_steps, self.warmup_ratio, total)
        if step < warmup:
            return (step + 1) / warmup
        return self.floor + (1 - self.floor) * self.shape(step - warmup, max(1, total - warmup), total)

    def shape(self, step: int, after: int, total: int) -> float:
        """Returns the share of what is above the floor: from 1 to 0.

        Zero would be reached by the step after the last, so that no step is spent with a rate of zero.

        Args:
            step: from 0, the first after the warm-up.
            after: steps after the warm-up.
            total: steps of the whole run.
        """
        raise NotImplementedError

    def facts(self) -> str:
        """Returns the schedule in words that change where it does, but for its length."""
        settings = {key: value for key, value in vars(self).items() if key not in ("max_epochs", "max_iters")}
        return f"{type(self).__name__}({', '.join(f'{key}={value}' for key, value in settings.items())})"


class WarmupCosine(Schedule):
    """Half a cosine: ``(1 + cos(pi * s / S)) / 2``."""

    def shape(self, step: int, after: int, total: int) -> float:
        """See `Schedule.shape`."""
        return 0.5 * (1 + math.cos(math.pi * step / after))


class WarmupLinear(Schedule):
    """A straight line: ``1 - s / S``."""

    def shape(self, step: int, after: int, total: int) -> float:
        """See `Schedule.shape`."""
        return max(0.0, 1 - step / after)


class WarmupConstant(Schedule):
    """The peak rate to the end; a run may be continued with another schedule."""

    def shape(self, step: int, after: int, total: int) -> float:
        """See `Schedule.shape`."""
        return 1.0


class WarmupStableDecay(Schedule):
    """The peak rate, then a straight line down over the last steps (WSD, arXiv 2404.06395).

    Args:
        warmup_ratio, max_epochs, max_iters, warmup_steps, floor: see `Schedule`.
        decay_ratio: share of all steps that decay, 0 to 1, rounded up to whole steps.
        decay_steps: steps that decay, instead of a share.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(
        self,
        warmup_ratio: float = 0.03,
        max_epochs: float | None = 1,
        max_iters: int | None = None,
        warmup_steps: int | None = None,
        floor: float = 0.0,
        decay_ratio: float = 0.1,
        decay_steps: int | None = None,
    ) -> None:
        super().__init__(warmup_ratio, max_epochs, max_iters, warmup_steps, floor)
        check_share("decay_ratio", decay_ratio)
        check_steps("decay_steps", decay_steps)
        self.decay_ratio = decay_ratio
        self.decay_steps = decay_steps

    def shape(self, step: int, after: int, total: int) -> float:
        """See `Schedule.shape`."""
        decay = steps_of(self.decay_steps, self.decay_ratio, total)
        return min(1.0, max(0.0, (after - step) / (decay + 1)))


def steps_of(steps: int | None, ratio: float, total: int) -> int:
    """Returns `steps`, or the share `ratio` of `total` rounded up; at most `total`."""
    # the tiny subtraction keeps 0.1 * 30 = 3.0000000000000004 at 3 steps
    return min(total, math.ceil(ratio * total - 1e-9) if steps is None else steps)


def check_share(name: str, value: float) -> None:
    """Checks a share.

    Raises:
        ValueError: it is not between 0 and 1.
    """
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}: expected a share between 0 and 1.")


def check_steps(name: str, value: int | None) -> None:
    """Checks a number of steps; None is none.

    Raises:
        ValueError: it is below 0.
    """
    if value is not None and value < 0:
        raise ValueError(f"{name} is {value}: expected 0 or more.")
