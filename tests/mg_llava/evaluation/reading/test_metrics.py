"""Measures against tables worked out by hand."""

from __future__ import annotations

import math

import pytest

from mg_llava.evaluation.reading.metrics import anls, box_iou, edit_distance, relaxed_match


@pytest.mark.parametrize(
    ("first", "second", "distance"),
    [("", "", 0), ("", "abc", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2), ("狗", "猫", 1), ("ab", "ba", 2)],
)
def test_edit_distance(first: str, second: str, distance: int) -> None:
    assert edit_distance(first, second) == edit_distance(second, first) == distance


@pytest.mark.parametrize(
    ("output", "answers", "expected"),
    [
        ("Coca  COLA", ["coca cola"], 1.0),  # case and spaces do not count
        ("12%", ["12"], 2 / 3),  # 1 edit of 3
        ("march 1999", ["March 3, 1999"], 10 / 13),  # "3, " is missing: 3 of 13
        ("abcd", ["abxy"], 0.5),  # exactly the threshold counts
        ("abc", ["axy"], 0.0),  # 1/3 is below it
        ("zzz", ["a b c d e f"], 0.0),
        ("left", ["right", "lefty"], 4 / 5),  # the nearest of several
        ("", ["x"], 0.0),
        ("", [""], 1.0),
        ("狗", ["狗"], 1.0),
    ],
)
def test_anls(output: str, answers: list[str], expected: float) -> None:
    assert anls(output, answers) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("output", "answer", "sound", "strict"),
    [
        ("43", "42", True, True),  # 2.4 % off
        ("105", "100", True, True),  # just 5 %
        ("106", "100", False, False),
        ("-105", "-100", True, True),
        ("95", "-95", False, False),
        ("0.51", "50%", True, True),
        ("50%", "50%", True, True),
        ("50", "50%", True, False),  # the official rule: 50 % is 0.5 only
        ("2%", "2", True, False),
        ("50%", "5", False, False),
        ("50%", "0.5", True, True),
        ("\u22123", "-3", True, False),
        ("\u22123", "3", False, False),
        ("5 cm", "5", True, False),
        ("5 cm", "5 m", False, False),
        ("$5", "5", True, False),
        ("5.2 million", "5.2", True, False),
        ("5.2 million", "5200000", True, False),
        ("three", "3", True, False),
        ("3/4", "0.75", True, False),
        ("2020-2021", "2020", False, False),
        ("0.0", "0", True, False),
        ("0.01", "0", False, False),
        ("1000", "1,000", True, False),
        ("1,000.", "1000", True, False),
        ("Blue ", "blue", True, True),
        ("Blue.", "blue", True, False),
        ("blue", "light blue", False, False),
        ("nan", "nan", True, True),  # words, not numbers
        ("", "0", False, False),
        ("猫", "猫", True, True),
    ],
)
def test_relaxed_match(output: str, answer: str, sound: bool, strict: bool) -> None:
    assert relaxed_match(output, answer) is sound
    assert relaxed_match(output, answer, strict_reference=True) is strict


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([0, 0, 2, 2], [0, 0, 2, 2], 1.0),
        ([0, 0, 2, 2], [1, 0, 3, 2], 2 / 6),
        ([0, 0, 2, 2], [0, 0, 1, 2], 0.5),
        ([0, 0, 1, 1], [1, 0, 2, 1], 0.0),
        ([0, 0, 0, 0], [0, 0, 0, 0], 0.0),
        ([1, 1, 0, 0], [0, 0, 1, 1], 0.0),
    ],
)
def test_box_iou(first: list[float], second: list[float], expected: float) -> None:
    assert math.isclose(box_iou(first, second), expected)
