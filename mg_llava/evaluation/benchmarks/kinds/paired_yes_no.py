"""Yes/no questions that count together: MME (arXiv 2306.13394) and HallusionBench (arXiv 2310.14566)."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from statistics import fmean
from typing import Any, ClassVar

from mg_llava.evaluation.benchmarks.base import Verdict, equal, mean_by_groups
from mg_llava.evaluation.benchmarks.labels import yes_no_labels
from mg_llava.evaluation.benchmarks.records import Prediction, Question
from mg_llava.evaluation.benchmarks.requests import HALLUSION, SHORT_ANSWER_REQUEST, Requests
from mg_llava.evaluation.benchmarks.requests import MME as MME_REQUESTS
from mg_llava.evaluation.benchmarks.tables import TableBenchmark
from mg_llava.evaluation.benchmarks.units import Scored, whole_units
from mg_llava.evaluation.reading.answers import yes_or_no
from mg_llava.evaluation.reading.published import kit_yes_or_no, mme_yes_or_no
from xtuner.errors import XTunerError

_COGNITION = frozenset(("code_reasoning", "commonsense_reasoning", "numerical_calculation", "text_translation"))
_CATEGORY_POINTS = 200
"""A category's most: 100 for all answers right, 100 for all pictures right in both questions."""
_FIGURE, _QUESTION = 1, 2
"""Places in HallusionBench's ``_<set>_<figure>_<question>``."""


class _YesNoTable(TableBenchmark):
    """A TSV of yes/no questions; `answer` is yes or no in any usual writing, see `answers.yes_no_label`."""

    def read_questions(self) -> list[Question]:
        """Reads the table; a row without index, question or category, or with another answer, is named."""
        rows = list(self.rows(("index", "question", "category")))
        cells = ((f"row with index {row['index']}", row.get("answer")) for _, row, _ in rows)
        answers = yes_no_labels(cells, self.data_path)
        return [
            self.question(place, answer, "category", "l2-category") for place, answer in zip(rows, answers, strict=True)
        ]

    def parse(self, question: Question, output: str) -> str | None:
        """Returns the yes or no that the answer begins with or states, else the only one that it holds."""
        return yes_or_no(output)


class MME(_YesNoTable):
    """MME: per category 100 · acc + 100 · acc+, where acc+ wants both questions of a picture right.

    ``overall`` is the share of the most points that the asked categories can give; perception, cognition and every
    category stand beside it in points. A picture without just two questions counts nowhere but in
    ``num_incomplete_groups``.
    """

    requests: ClassVar[Requests] = MME_REQUESTS

    def unit(self, question: Question) -> tuple[str, str]:
        """Returns category and picture."""
        return question.groups["category"], _picture_name(question)

    def prompt(self, question: Question) -> str:
        """Returns the question with the request in the place of MME's own; one for a short answer has its own line."""
        text, sentence = question.text.replace("Please answer yes or no.", "").strip(), self.wording[1]
        return f"{text}\n{sentence}" if sentence == SHORT_ANSWER_REQUEST else f"{text} {sentence}"

    def published(self, question: Question, output: str) -> dict[str, Verdict]:
        """Returns what MME's own script, which lmms-eval has too, and VLMEvalKit say."""
        return {
            "MME": equal(mme_yes_or_no(output), question.answer),
            "VLMEvalKit": equal(kit_yes_or_no(output), question.answer),
        }

    def score(self, predictions: Sequence[Prediction]) -> dict[str, Any]:
        """Returns ``overall``, ``perception``, ``cognition``, ``points`` and per category acc and acc+."""
        units, incomplete = whole_units(
            self.scored(predictions), self.unit, lambda members: self.strict_reference or len(members) == 2
        )
        pictures: dict[str, list[list[float]]] = defaultdict(list)
        for members in units:
            pictures[members[0][0].groups["category"]].append([hit for _, hit in members])
        accuracy = {name: fmean(hit for hits in groups for hit in hits) for name, groups in pictures.items()}
        plus = {name: fmean(min(hits) for hits in groups) for name, groups in pictures.items()}
        points = {name: 100 * (accuracy[name] + plus[name]) for name in pictures}
        return {
            "overall": sum(points.values()) / (_CATEGORY_POINTS * len(points)) if points else None,
            "perception": sum(value for name, value in points.items() if name not in _COGNITION),
            "cognition": sum(value for name, value in points.items() if name in _COGNITION),
            "points": points,
            "acc": accuracy,
            "acc_plus": plus,
            "num_incomplete_groups": incomplete,
            "groups": {"category": {name: value / _CATEGORY_POINTS for name, value in points.items()}},
        }


def _picture_name(question: Question) -> str:
    if not question.pictures:
        return question.id
    return question.pictures[0].key or question.pictures[0].encoded or ""


class HallusionBench(_YesNoTable):
    """HallusionBench: aAcc counts answers, fAcc figures with all answers right, qAcc questions right on all figures.

    Every question of a set is asked of every figure of it; a figure or question that lacks one counts only in
    ``num_incomplete_groups`` and aAcc (`strict_reference` counts it everywhere). The index is
    ``<category>_<subcategory>_<…>_<set>_<figure>_<question>``. ``overall`` is aAcc. A question without a picture is
    asked without one; `strict_reference` leaves it out.
    """

    requests: ClassVar[Requests] = HALLUSION
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

    def score(self, predictions: Sequence[Prediction]) -> dict[str, Any]:
        """Returns ``overall`` (aAcc), ``aAcc``, ``fAcc``, ``qAcc``, each also by category."""
        pairs = self.scored(predictions)
        figures, incomplete_figures = self._all_right(pairs, _FIGURE)
        questions, incomplete_questions = self._all_right(pairs, _QUESTION)
        units = {
            "aAcc": mean_by_groups((question.groups, hit) for question, hit in pairs),
            "fAcc": figures,
            "qAcc": questions,
        }
        return {
            "overall": units["aAcc"]["overall"],
            **{name: scores["overall"] for name, scores in units.items()},
            "groups": units["aAcc"]["groups"],
            "fAcc_groups": units["fAcc"]["groups"],
            "qAcc_groups": units["qAcc"]["groups"],
            "num_incomplete_groups": incomplete_figures + incomplete_questions,
            "num_incomplete_figures": incomplete_figures,
            "num_incomplete_questions": incomplete_questions,
        }

    def published(self, question: Question, output: str) -> dict[str, Verdict]:
        """Returns what VLMEvalKit says, whose reading the authors' boards show."""
        return {"VLMEvalKit": equal(kit_yes_or_no(output), question.answer)}

    def unit(self, question: Question) -> tuple[str, ...]:
        """Returns the set of figures and questions."""
        return self._key(question)

    @cached_property
    def _grids(self) -> dict[tuple[str, ...], tuple[set[str], set[str]]]:
        """Figures and questions of each set in the file."""
        grids: dict[tuple[str, ...], tuple[set[str], set[str]]] = {}
        for question in self.questions():
            figures, questions = grids.setdefault(self._key(question), (set(), set()))
            _, figure, number = self._numbers(question)
            figures.add(figure)
            questions.add(number)
        return grids

    def _numbers(self, question: Question) -> tuple[str, str, str]:
        """Set, figure and question."""
        match = self._index.fullmatch(question.box_id)
        assert match is not None  # checked when the table was read
        return match[1], match[2], match[3]

    def _key(self, question: Question) -> tuple[str, ...]:
        return (*question.groups.values(), self._numbers(question)[0])

    def _all_right(self, pairs: Sequence[Scored], part: int) -> tuple[dict[str, Any], int]:
        """Scores of figures or questions, right where all answers are.

        Args:
            pairs: scored questions.
            part: `_FIGURE` or `_QUESTION`.

        Returns:
            The scores, and the number of those that lack an answer, which they do not count.
        """
        other = _QUESTION if part == _FIGURE else _FIGURE

        def key(question: Question) -> tuple[str, ...]:
            return (*self._key(question), self._numbers(question)[part])

        def is_whole(members: Sequence[Question]) -> bool:
            wanted = self._grids[self._key(members[0])][other - 1]
            found = [self._numbers(question)[other] for question in members]
            return self.strict_reference or sorted(found) == sorted(wanted)

        units, incomplete = whole_units(pairs, key, is_whole)
        scores = mean_by_groups((members[0][0].groups, min(hit for _, hit in members)) for members in units)
        return scores, incomplete
