"""GQA's measures beside accuracy (arXiv 1902.09506, section 4.4): validity, plausibility, consistency, distribution.

Questions are records of the authors' question files; choices are those of their ``*_choices.json``.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

Record = Mapping[str, Any]

_COMMON = ("color", "material", "shape")
"""What any question for what two things have in common may be answered with."""
_NO_STEPS = ("exist", "query: name", "choose name")
"""Operations that the authors' script does not count as a step."""


def steps(record: Record) -> int:
    """Returns of how many steps of reasoning a question consists, as the authors count them."""
    operations = (f"{one.get('operation', '')}: {one.get('argument', '')}" for one in record.get("semantic") or ())
    return sum(not any(name in operation for name in _NO_STEPS) for operation in operations)


def is_among(answer: str, choices: Sequence[str], record: Record) -> bool:
    """Returns whether an answer is one of `choices`, or of what all questions for something in common may have."""
    detailed = str((record.get("types") or {}).get("detailed") or "")
    return answer in (_COMMON if "Common" in detailed else choices)


def consistency(record_id: str, records: Mapping[str, Record], answers: Mapping[str, str]) -> float | None:
    """Returns how many of the questions that a question entails are answered right, 0–1.

    Args:
        record_id: of a question that is answered right itself; its own id in its list does not count.
        records: the authors' questions by id.
        answers: by id, of the questions that were asked; entailed questions that were not asked are left out.
    """
    entailed = [
        other
        for other in records[record_id].get("entailed") or ()
        if other != record_id and other in answers and other in records
    ]
    return fmean(answers[other] == records[other].get("answer") for other in entailed) if entailed else None


def distribution(answered: Iterable[tuple[Record, str]]) -> float | None:
    """Returns how far the distribution of the answers given is from that of the right ones.

    0 is equal; the measure grows with the number of questions. It is the χ² of given against right answers within each
    group of questions (``groups.global``), weighted by the groups' sizes, by 100. Answers that are right nowhere in
    the group do not count. None without a group.

    Args:
        answered: questions with the answers given.
    """
    right: dict[str, Counter[str]] = defaultdict(Counter)
    given: dict[str, Counter[str]] = defaultdict(Counter)
    for record, answer in answered:
        group = (record.get("groups") or {}).get("global")
        if group is not None:
            right[group][str(record.get("answer"))] += 1
            given[group][answer] += 1
    total = sum(counts.total() for counts in right.values())
    if not total:
        return None
    weighted = (
        counts.total() * sum((given[group][answer] - count) ** 2 / count for answer, count in counts.items())
        for group, counts in right.items()
    )
    return sum(weighted) / total / 100
