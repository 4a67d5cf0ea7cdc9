"""Questions that count together: rotations of one question, both questions of a picture, a pair of pictures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence

from mg_llava.evaluation.benchmarks.records import Question

Scored = tuple[Question, float]
"""A question and how right its answer is."""


def whole_units(
    pairs: Iterable[Scored],
    unit: Callable[[Question], Hashable],
    is_whole: Callable[[Sequence[Question]], bool],
) -> tuple[list[list[Scored]], int]:
    """Gathers questions by what they count with.

    Args:
        pairs: scored questions.
        unit: key of the unit that a question belongs to.
        is_whole: whether these are all questions of their unit.

    Returns:
        The whole units in order of their first question, and the number of those with questions missing or repeated.
    """
    units: dict[Hashable, list[Scored]] = defaultdict(list)
    for question, hit in pairs:
        units[unit(question)].append((question, hit))
    whole = [members for members in units.values() if is_whole([question for question, _ in members])]
    return whole, len(units) - len(whole)


def first_units(questions: Sequence[Question], unit: Callable[[Question], Hashable], limit: int) -> list[Question]:
    """Returns the first units of questions that hold no more than `limit` questions, but one unit at least.

    Args:
        questions: in the order of the file.
        unit: key of the unit that a question belongs to.
        limit: of questions; a unit is never cut.

    Returns:
        Their questions, in the order of the file.
    """
    units: dict[Hashable, list[int]] = defaultdict(list)
    for place, question in enumerate(questions):
        units[unit(question)].append(place)
    taken: list[int] = []
    for places in units.values():
        if taken and len(taken) + len(places) > limit:
            break
        taken += places
    return [questions[place] for place in sorted(taken)]
