"""Measures of a single answer: ANLS, relaxed accuracy, overlap of boxes. Pure functions, 0–1."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mg_llava.evaluation.reading.numbers import read_number, same_number
from mg_llava.evaluation.reading.text import ascii_minus, half_width

_ANLS_THRESHOLD = 0.5


def edit_distance(first: Sequence[str], second: Sequence[str]) -> int:
    """Returns the Levenshtein distance: insertions, deletions and substitutions of letters, or of words in lists."""
    previous = list(range(len(second) + 1))
    for row, letter in enumerate(first, start=1):
        current = [row]
        for column, other in enumerate(second, start=1):
            current.append(min(previous[column] + 1, current[-1] + 1, previous[column - 1] + (letter != other)))
        previous = current
    return previous[-1]


def anls(output: str, answers: Sequence[str]) -> float:
    """Returns one question's part of the Average Normalised Levenshtein Similarity (arXiv 1905.13648).

    1 − distance / length of the longer text, for the nearest of the right answers, in lower case with single spaces;
    0 where that is below 0.5.
    """
    similarities = [similarity(_plain(output), _plain(answer)) for answer in answers]
    best = max(similarities, default=0.0)
    return best if best >= _ANLS_THRESHOLD else 0.0


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def similarity(first: Sequence[str], second: Sequence[str]) -> float:
    """Returns 1 − `edit_distance` / length of the longer; 1 where both are empty."""
    longer = max(len(first), len(second))
    return 1.0 if longer == 0 else 1 - edit_distance(first, second) / longer


def relaxed_match(output: str, answer: str, tolerance: float = 0.05, strict_reference: bool = False) -> bool:
    """Returns ChartQA's relaxed match: numbers within 5 % of the right one, other words equal but for case.

    Numbers are read by `numbers.read_number`; "2%" is 2 as much as 0.02, and a unit, currency or "million" that only
    one of the two has does not matter.

    Args:
        output: the model's answer; a full stop at its end does not matter.
        answer: the right one.
        tolerance: share of the right number.
        strict_reference: as the original: a right answer of zero and numbers with commas are compared as words, and
            "2%" is 0.02 only.
    """
    if strict_reference:
        number, target = _number(output), _number(answer)
        if number is not None and target:
            return abs(number - target) / abs(target) <= tolerance
        return output.strip().lower() == answer.strip().lower()
    found, right = read_number(output), read_number(answer)
    if found is not None and right is not None:
        return same_number(found, right, tolerance)
    return _words(output) == _words(answer)


def _words(text: str) -> str:
    return " ".join(ascii_minus(half_width(text)).strip().rstrip(".").lower().split())


def _number(text: str) -> float | None:
    text = text.strip()
    try:
        number = float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def box_iou(first: Sequence[float], second: Sequence[float]) -> float:
    """Returns the intersection over union of two xyxy boxes of one frame; 0 where one has no area."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(width, 0.0) * max(height, 0.0)
    areas = [max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0) for box in (first, second)]
    total = sum(areas) - shared
    return shared / total if min(areas) > 0 else 0.0
