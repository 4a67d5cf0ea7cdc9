"""Multiple-choice questions in VLMEvalKit's table format: MMBench, SEED-Bench-Image, ScienceQA, AI2D, MMStar, MMMU."""

from __future__ import annotations

import re
import string
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from mg_llava.evaluation.benchmarks.base import Verdict, equal, mean_by_groups
from mg_llava.evaluation.benchmarks.files import refuse
from mg_llava.evaluation.benchmarks.labels import read_list
from mg_llava.evaluation.benchmarks.records import Picture, Prediction, Question
from mg_llava.evaluation.benchmarks.requests import (
    CHINESE_LETTER_REQUEST,
    LETTER,
    LETTER_REQUEST,
    OWN,
    SHORT_ANSWER_REQUEST,
    Requests,
)
from mg_llava.evaluation.benchmarks.tables import TableBenchmark
from mg_llava.evaluation.benchmarks.units import whole_units
from mg_llava.evaluation.reading.answers import option_letter, strict_option_letter
from mg_llava.evaluation.reading.mmmu import official_letter, official_open_answer_is_right, open_answer_is_right
from mg_llava.evaluation.reading.published import kit_letter, lmms_mmbench_letter
from mg_llava.evaluation.reading.text import half_width
from mg_llava.evaluation.results.spreadsheet import question_cells, write_rows
from xtuner.errors import XTunerError

_LETTERS = string.ascii_uppercase
_CHINESE = re.compile(r"[\u4e00-\u9fff]")
_MADE_UP_OPTIONS = {"A": "Yes", "B": "No", "C": "Other", "D": "None"}
"""What the original asks a question without options to choose from; no recording of it was at hand."""
_ROTATION = 1_000_000
"""MMBench numbers the rotations of question n as n, n + 1,000,000, n + 2,000,000, …"""


@dataclass(kw_only=True, eq=False)
class MultipleChoice(TableBenchmark):
    """A TSV of ``index, image, question, hint?, A…I, answer?, category?, l2-category?, split?``; see `TableBenchmark`.

    The answer is read by `answers.option_letter`.

    Args:
        circular: a question counts as right only if all its rotations are, as many as it has options (MMBench); one
            that lacks some counts only in ``num_incomplete_groups`` and ``without_circular``.
        open_questions: rows without options are allowed and their short answer is compared (MMMU); else such a row
            is an error.
        (others): see `TableBenchmark`.
    """

    requests: ClassVar[Requests] = LETTER
    strict_differs: ClassVar[bool] = True

    circular: bool = False
    open_questions: bool = False

    def read_questions(self) -> list[Question]:
        """Reads the table; a row without index, question or options is named by its number."""
        needed = ("index", "question") if self.open_questions else ("index", "question", "A")
        questions = [self._question(*row) for row in self.rows(needed)]
        refuse([found for question in questions if (found := _fault(question))], self.data_path)
        if self.circular:
            for question in questions:
                self._index(question)
        return questions

    def _question(self, unique_id: str, row: dict[str, str], pictures: tuple[Picture, ...]) -> Question:
        hint = row.get("hint")
        answer = row.get("answer")
        options = {letter: row[letter] for letter in _LETTERS if letter in row}
        return Question(
            id=unique_id,
            text=f"{hint}\n{row['question']}" if hint else row["question"],
            pictures=pictures,
            box_id=row["index"],
            answer=None if answer is None else _answer_letter(answer, options) if options else answer,
            options=options,
            groups={axis: row[axis] for axis in ("category", "l2-category", "split") if axis in row},
        )

    def prompt(self, question: Question) -> str:
        """Returns question, options and the request for a letter, in Chinese where the question is.

        A question without options asks for a short answer; `strict_reference` makes up options, as the original does.
        """
        name, request = self.wording
        options = question.options or (_MADE_UP_OPTIONS if self.strict_reference else {})
        if not options:
            return f"{question.text}\n{request if name == OWN else SHORT_ANSWER_REQUEST}"
        lines = [question.text, *(f"{letter}. {text}" for letter, text in options.items())]
        if request == LETTER_REQUEST and _CHINESE.search("\n".join(lines)):
            request = CHINESE_LETTER_REQUEST
        return "\n".join([*lines, request])

    def parse(self, question: Question, output: str) -> str | None:
        """Returns the letter that the answer chooses; the words themselves where the question has no options."""
        if self.strict_reference:
            return strict_option_letter(output)
        if not question.options:
            return output.strip() or None
        # what MMMU's authors read where nothing says it plainly: the last letter that stands alone
        return option_letter(output, question.options) or (
            official_letter(half_width(output), question.options) if self.open_questions else None
        )

    def hit(self, question: Question, parsed: str | None) -> float | None:
        """Returns whether letter, or short answer, is the right one; of several right answers any will do."""
        if question.options or question.answer is None:
            return super().hit(question, parsed)
        return float(parsed is not None and open_answer_is_right(parsed, read_list(question.answer)))

    def published(self, question: Question, output: str) -> dict[str, Verdict]:
        """Returns what MMMU's script (with `open_questions`), VLMEvalKit and lmms-eval's MMBench say."""
        if not question.options:
            answers = None if question.answer is None else read_list(question.answer)
            hit = None if answers is None else float(official_open_answer_is_right(output, answers))
            return {"MMMU": (output, hit)}
        kit = equal(kit_letter(output, question.options), question.answer)
        if self.open_questions:
            return {"MMMU": equal(official_letter(output, question.options), question.answer), "VLMEvalKit": kit}
        lmms = equal(lmms_mmbench_letter(output, question.options), question.answer)
        return {"VLMEvalKit": kit, "lmms-eval": lmms} if self.circular else {"VLMEvalKit": kit}

    def score(self, predictions: Sequence[Prediction]) -> dict[str, Any]:
        """Returns the share of right answers; with `circular`, of questions right in all their rotations."""
        if not self.circular:
            return super().score(predictions)
        scored = self.scored(predictions)
        questions, incomplete = whole_units(scored, self.unit, self._has_all_rotations)
        scores = mean_by_groups((rows[0][0].groups, min(hit for _, hit in rows)) for rows in questions)
        single = mean_by_groups((question.groups, hit) for question, hit in scored)
        return {**scores, "without_circular": single["overall"], "num_incomplete_groups": incomplete}

    def unit(self, question: Question) -> Hashable:
        """Returns the number of the question whose rotation it is, or the row's own id where none count together."""
        return self._index(question) % _ROTATION if self.circular else super().unit(question)

    def _has_all_rotations(self, rows: Sequence[Question]) -> bool:
        """Whether rows are a question in as many rotations as it has options, each once."""
        numbers = sorted(self._index(question) // _ROTATION for question in rows)
        return self.strict_reference or numbers == list(range(len(rows[0].options)))

    def _index(self, question: Question) -> int:
        try:
            return int(float(question.box_id))
        except ValueError as error:
            raise XTunerError(
                f"'{self.data_path}': index '{question.box_id}' is not a number, but circular scoring finds the "
                f"rotations of a question by its number modulo {_ROTATION}. Set circular=False for this file."
            ) from error

    def write_files(self, folder: str, predictions: Sequence[Prediction]) -> list[str]:
        """Writes the xlsx that MMBench's server takes: the table without pictures, and a column `prediction`."""
        rows = [
            # the server reads letters itself; what could not be read is sent as it is
            {**question_cells(question), "prediction": prediction.parsed or prediction.output}
            for question, prediction in self.pairs(predictions)
        ]
        return [str(write_rows(Path(folder) / f"{self.name}.xlsx", rows))]


def _answer_letter(cell: str, options: Mapping[str, str]) -> str:
    """The letter that an answer cell means: "b", "(B)", or the text of an option; else what stands there."""
    text = half_width(cell).strip()
    letter = text.strip("().[] ").upper()
    if letter in options:
        return letter
    same = [letter for letter, option in options.items() if option.strip() == cell.strip()]
    return same[0] if len(same) == 1 else text


def _fault(question: Question) -> str | None:
    if question.answer is None or not question.options or question.answer in question.options:
        return None
    return (
        f"row with index {question.box_id}: its answer is {question.answer!r}, expected one of its options "
        f"{', '.join(question.options)}"
    )
