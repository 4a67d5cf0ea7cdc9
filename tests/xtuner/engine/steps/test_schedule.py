from __future__ import annotations

import math

import pytest

from xtuner.engine.steps.schedule import WarmupCosine


def test_hand_worked_rates() -> None:
    schedule = WarmupCosine(warmup_ratio=0.2)
    # 10 steps: two warm up, then (1 + cos(pi * k / 8)) / 2 for k = 0 ... 7
    expected = [0.5, 1.0, 1.0, 0.961940, 0.853553, 0.691342, 0.5, 0.308658, 0.146447, 0.038060]
    assert [schedule.factor(step, 10) for step in range(10)] == pytest.approx(expected, abs=1e-6)
    assert schedule.factor(10, 10) == pytest.approx(0)


def test_warm_up_steps_are_not_rounded_up_by_float_noise() -> None:
    assert WarmupCosine(warmup_ratio=0.1).factor(2, 30) == 1.0  # 0.1 * 30 = 3.0000000000000004


@pytest.mark.parametrize(("epochs", "iters", "total"), [(1, None, 11), (2.5, None, 28), (3, 7, 7)])
def test_total_steps(epochs: float, iters: int | None, total: int) -> None:
    assert WarmupCosine(max_epochs=epochs, max_iters=iters).total_steps(lambda n: math.ceil(11 * n)) == total


@pytest.mark.parametrize("bad", [dict(warmup_ratio=3), dict(max_epochs=0), dict(max_iters=0), dict(max_epochs=None)])
def test_refuses(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected|set one"):
        WarmupCosine(**bad)  # type: ignore[arg-type]
