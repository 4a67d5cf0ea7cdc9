"""Yes/no questions that count together: MME (arXiv 2306.13394) and HallusionBench (arXiv 2310.14566)."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any, ClassVar

from mg_llava.evaluation.benchmarks.base import mean_by_groups
from mg_llava.evaluation.benchmarks.records import Prediction, Question
from mg_llava.evaluation.benchmarks.tables import TableBenchmark
from mg_llava.evaluation.reading.answers import yes_or_no
from xtuner.errors import XTunerError

_COGNITION = frozenset(("code_reasoning", "commonsense_reasoning", "numerical_calculation", "text_translation"))
_CATEGORY_POINTS = 200
"""A category's most: 100 for all answers right, 100 for all pictures right in both questions."""
_FIGURE, _QUESTION = (1, 2), (1, 3)
"""Parts of HallusionBench's indices ``_<set>_<figure>_<question>`` that name a figure and a question of a set."""


class _YesNoTable(TableBenchmark):
    """A TSV of yes/no questions; `answer` may be Yes/No or 1/0."""

    def read_questions(self) -> list[Question]:
        """Reads the table; a row without index, question or category is named by its number."""
        return [
            self.question(place, _yes_no_answer(place[1], self.data_path), "category", "l2-category")
            for place in self.rows(("index", "question", "category"))
        ]

    def parse(self, question: Question, output: str) -> str | None:
        """Returns yes or no where the answer holds just one of them."""
        return yes_or_no(output)


def _yes_no_answer(row: Mapping[str, str], path: str) -> str | None:
    known = {"yes": "yes", "no": "no", "1": "yes", "0": "no", "1.0": "yes", "0.0": "no"}
    cell = row.get("answer")
    if cell is None:
        return None
    if cell.strip().lower() not in known:
        raise XTunerError(
            f"'{path}' row with index {row['index']}: its answer is {cell!r}, expected Yes or No. "
            "Download the file again."
        )
    return known[cell.strip().lower()]


class MME(_YesNoTable):
    """MME: per category 100 · acc + 100 · acc+, where acc+ wants both questions of a picture right.

    ``overall`` is the share of the most points that the asked categories can give; perception, cognition and every
    category stand beside it in points.
    """

    def prompt(self, question: Question) -> str:
        """Returns the question with the request that LLaVA's evaluation puts in the place of MME's own."""
        text = question.text.replace("Please answer yes or no.", "").strip()
        return f"{text} Please answer the question only a single word yes or no."

    def scored_with(self, question: Question) -> tuple[str, ...]:
        """Returns the picture's name in its category."""
        return (f"{question.groups['category']}/{_picture_name(question)}",)

    def score(self, predictions: Sequence[Prediction]) -> dict[str, Any]:
        """Returns ``overall``, ``perception``, ``cognition``, ``points`` and per category acc and acc+."""
        pictures: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for question, prediction in self.pairs(predictions):
            if prediction.hit is not None:
                pictures[question.groups["category"]][_picture_name(question)].append(prediction.hit)
        accuracy = {name: fmean(hit for hits in groups.values() for hit in hits) for name, groups in pictures.items()}
        plus = {name: fmean(min(hits) for hits in groups.values()) for name, groups in pictures.items()}
        points = {name: 100 * (accuracy[name] + plus[name]) for name in pictures}
        return {
            "overall": sum(points.values()) / (_CATEGORY_POINTS * len(points)) if points else None,
            "perception": sum(value for name, value in points.items() if name not in _COGNITION),
            "cognition": sum(value for name, value in points.items() if name in _COGNITION),
            "points": points,
            "acc": accuracy,
            "acc_plus": plus,
            "groups": {"category": {name: value / _CATEGORY_POINTS for name, value in points.items()}},
        }


def _picture_name(question: Question) -> str:
    if not question.pictures:
        return question.id
    return question.pictures[0].key or question.pictures[0].encoded or ""


class HallusionBench(_YesNoTable):
    """HallusionBench: aAcc counts answers, fAcc figures with all answers right, qAcc questions right on all figures.

    The index is ``<category>_<subcategory>_<…>_<set>_<figure>_<question>``. ``overall`` is aAcc. A question without a
    picture is asked without one; `strict_reference` leaves it out.
    """

    strict_differs: ClassVar[bool] = True
    _index = re.compile(r".*_(\d+)_(\d+)_(\d+)")

    def read_questions(self) -> list[Question]:
        """Reads the table; an index of another form is named."""
        questions = super().read_questions()
        for question in questions:
            if not self._index.fullmatch(question.box_id):
                raise XTunerError(
                    f"'{self.data_path}': index '{question.box_id}' does not end in _<set>_<figure>_<question>, which "
                    "fAcc and qAcc need. Download the file again."
                )
        if self.strict_reference:
            return [question for question in questions if question.pictures]
        return questions

    def prompt(self, question: Question) -> str:
        """Returns the question and the request for yes or no."""
        return f"{question.text}\nPlease answer the question with yes or no."

    def scored_with(self, question: Question) -> tuple[str, ...]:
        """Returns the question's figure and the question that is asked of several figures."""
        return tuple("/".join(self._unit(question, parts)) for parts in (_FIGURE, _QUESTION))

    def _unit(self, question: Question, parts: tuple[int, int]) -> tuple[str, ...]:
        """What questions that agree in the parts `parts` of their indices share."""
        match = self._index.fullmatch(question.box_id)
        assert match is not None  # checked when the table was read
        return (*question.groups.values(), str(parts), match[parts[0]], match[parts[1]])

    def score(self, predictions: Sequence[Prediction]) -> dict[str, Any]:
        """Returns ``overall`` (aAcc), ``aAcc``, ``fAcc``, ``qAcc``, each also by category."""
        pairs = [(question, one.hit) for question, one in self.pairs(predictions) if one.hit is not None]
        units = {
            "aAcc": mean_by_groups((question.groups, hit) for question, hit in pairs),
            "fAcc": self._all_right(pairs, _FIGURE),
            "qAcc": self._all_right(pairs, _QUESTION),
        }
        return {
            "overall": units["aAcc"]["overall"],
            **{name: scores["overall"] for name, scores in units.items()},
            "groups": units["aAcc"]["groups"],
            "fAcc_groups": units["fAcc"]["groups"],
            "qAcc_groups": units["qAcc"]["groups"],
        }

    def _all_right(self, pairs: Iterable[tuple[Question, float]], parts: tuple[int, int]) -> dict[str, Any]:
        """Scores of units that agree in the parts `parts` of their indices; a unit needs all its answers right."""
        units: dict[tuple[str, ...], list[float]] = defaultdict(list)
        groups: dict[tuple[str, ...], Mapping[str, str]] = {}
        for question, hit in pairs:
            key = self._unit(question, parts)
            units[key].append(hit)
            groups[key] = question.groups
        return mean_by_groups((groups[key], min(hits)) for key, hits in units.items())
