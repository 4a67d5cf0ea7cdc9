from __future__ import annotations

import math

import pytest

from xtuner.engine.steps.schedule import Schedule, WarmupConstant, WarmupCosine, WarmupLinear, WarmupStableDecay


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


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (WarmupLinear(warmup_steps=2), [0.5, 1, 1, 0.75, 0.5, 0.25]),
        (WarmupLinear(warmup_steps=2, floor=0.2), [0.5, 1, 1, 0.8, 0.6, 0.4]),
        (WarmupConstant(warmup_steps=3), [1 / 3, 2 / 3, 1, 1, 1, 1]),
        (WarmupConstant(warmup_ratio=0), [1] * 6),
        # the last two of six steps decay: two thirds, one third
        (WarmupStableDecay(warmup_steps=1, decay_ratio=1 / 3), [1, 1, 1, 1, 2 / 3, 1 / 3]),
        (WarmupStableDecay(warmup_steps=1, decay_steps=3, floor=0.2), [1, 1, 1, 0.8, 0.6, 0.4]),
        (WarmupStableDecay(warmup_ratio=0, decay_ratio=0), [1] * 6),
        (WarmupCosine(warmup_steps=2, floor=0.5), [0.5, 1, 1, 0.926777, 0.75, 0.573223]),
        (WarmupCosine(warmup_steps=9), [1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1]),
    ],
)
def test_shapes_floor_and_warm_up_in_steps(schedule: Schedule, expected: list[float]) -> None:
    assert [schedule.factor(step, 6) for step in range(6)] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("bad", [dict(warmup_steps=-1), dict(floor=1.5), dict(decay_ratio=2), dict(decay_steps=-3)])
def test_refuses_out_of_range(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        WarmupStableDecay(**bad)  # type: ignore[arg-type]


def test_facts_say_what_changes_the_curve() -> None:
    assert WarmupConstant(max_iters=3).facts() == WarmupConstant(max_iters=5).facts()
    assert WarmupConstant().facts() != WarmupLinear().facts() != WarmupLinear(floor=0.1).facts()
