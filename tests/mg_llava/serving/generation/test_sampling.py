"""The next token of each row, by hand-worked numbers; rows that cannot be drawn leave the others alone."""

from __future__ import annotations

import pytest
import torch

from mg_llava.serving.generation.sampling import Draw, Sampling, choose, nucleus

LOGITS = torch.tensor([[0.0, 3.0, 1.0, 2.0], [4.0, 3.0, 2.0, 1.0]])


def test_nucleus() -> None:
    probabilities = torch.tensor([[0.1, 0.5, 0.15, 0.25], [0.4, 0.3, 0.2, 0.1]])
    kept = nucleus(probabilities, torch.tensor([[0.7], [0.0001]]))
    assert (kept > 0).tolist() == [[False, True, False, True], [True, False, False, False]]


@pytest.mark.parametrize("share", [0.0, 1e-320, 1e-45, -1.0])
def test_the_likeliest_is_always_in_the_nucleus(share: float) -> None:
    draws = [Draw(Sampling(temperature=1.0, top_p=share))] * 2
    assert choose(LOGITS, draws) == [1, 0]


@pytest.mark.parametrize("temperature", [0.0, 1e-320, 1e-45, 1e-9, float("nan"), -1.0])
def test_next_to_no_temperature_is_none(temperature: float) -> None:
    assert choose(LOGITS, [Draw(Sampling(temperature=temperature))] * 2) == [1, 0]


@pytest.mark.parametrize("fault", [float("nan"), float("inf")])
def test_a_row_that_is_no_numbers_is_told_alone(fault: float) -> None:
    logits = LOGITS.clone()
    logits[0, 2] = fault
    for temperature in (0.0, 1.0):
        tokens = choose(logits, [Draw(Sampling(temperature=temperature, top_p=0.1))] * 2)
        assert tokens == [None, 0]
    # a token that a model rules out is no fault
    logits[0, 2] = -torch.inf
    assert choose(logits, [Draw(Sampling(temperature=1.0, top_p=0.1))] * 2) == [1, 0]


def test_penalties_count_the_answer() -> None:
    """Row 0: 3 − 1.5 < 2. Row 1: 4 − 2 · 0.6 < 3 for two, 4 − 0.6 > 3 for one."""
    present = Draw(Sampling(presence_penalty=1.5), ids=(1, 1))
    frequent = Draw(Sampling(frequency_penalty=0.6), ids=(0, 0))
    assert choose(LOGITS, [present, frequent]) == [3, 1]
    assert choose(LOGITS, [Draw(Sampling(presence_penalty=1.5)), Draw(Sampling(frequency_penalty=0.6), ids=(0,))]) == [
        1,
        0,
    ]
    assert LOGITS[0, 1] == 3.0
