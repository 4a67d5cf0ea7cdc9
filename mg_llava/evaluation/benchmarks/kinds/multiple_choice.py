"""Multiple-choice questions in VLMEvalKit's table format: MMBench, SEED-Bench-Image, ScienceQA, AI2D, MMStar, MMMU."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from mg_llava.evaluation.benchmarks.base import mean_by_groups
from mg_llava.evaluation.benchmarks.records import Picture, Prediction, Question
from mg_llava.evaluation.benchmarks.tables import SHORT_ANSWER_REQUEST, TableBenchmark, read_list
from mg_llava.evaluation.reading.answers import option_letter, short_answer, strict_option_letter
from mg_llava.evaluation.results.spreadsheet import question_cells, write_rows
from xtuner.errors import XTunerError

_LETTERS = "ABCDEFGHI"
_CHINESE = re.compile(r"[\u4e00-\u9fff]")
_ROTATION = 1_000_000
"""MMBench numbers the rotations of question n as n, n + 1,000,000, n + 2,000,000, …"""


@dataclass(kw_only=True, eq=False)
class MultipleChoice(TableBenchmark):
    """A TSV of ``index, image, question, hint?, A…I, answer?, category?, l2-category?, split?``; see `TableBenchmark`.

    The answer is read by `answers.option_letter`.

    Args:
        circular: a question counts as right only if all its rotations in the file are (MMBench).
        open_questions: rows without options are allowed and their short answer is compared (MMMU); else such a row
            is an error.
        (others): see `TableBenchmark`.
    """

    strict_differs: ClassVar[bool] = True

    circular: bool = False
    open_questions: bool = False

    def read_questions(self) -> list[Question]:
        """Reads the table; a row without index, question or options is named by its number."""
        needed = ("index", "question") if self.open_questions else ("index", "question", "A")
        return [self._question(*row) for row in self.rows(needed)]

    def _question(self, unique_id: str, row: dict[str, str], pictures: tuple[Picture, ...]) -> Question:
        hint = row.get("hint")
        answer = row.get("answer")
        return Question(
            id=unique_id,
            text=f"{hint}\n{row['question']}" if hint else row["question"],
            pictures=pictures,
            box_id=row["index"],
            answer=None if answer is None else answer.strip().upper() if "A" in row else answer,
            options={letter: row[letter] for letter in _LETTERS if letter in row},
            groups={axis: row[axis] for axis in ("category", "l2-category", "split") if axis in row},
        )

    def prompt(self, question: Question) -> str:
        """Returns question, options and the request for a letter, in Chinese where the question is."""
        if not question.options:
            return f"{question.text}\n{SHORT_ANSWER_REQUEST}"
        lines = [question.text, *(f"{letter}. {text}" for letter, text in question.options.items())]
        chinese = _CHINESE.search("\n".join(lines))
        request = (
            "请直接回答选项字母。" if chinese else "Answer with the option's letter from the given choices directly."
        )
        return "\n".join([*lines, request])

    def parse(self, question: Question, output: str) -> str | None:
        """Returns the letter that the answer chooses; the words themselves where the question has no options."""
        if self.strict_reference:
            return strict_option_letter(output)
        return option_letter(output, question.options) if question.options else short_answer(output) or None

    def hit(self, question: Question, parsed: str | None) -> float | None:
        """Returns whether letter, or short answer, is the right one; of several right answers any will do."""
        if question.options or question.answer is None:
            return super().hit(question, parsed)
        right = {short_answer(answer) for answer in read_list(question.answer)}
        return float(parsed is not None and parsed in right)

    def scored_with(self, question: Question) -> tuple[str, ...]:
        """Returns the question whose rotation this is, with `circular`."""
        return (str(self._base_index(question)),) if self.circular else ()

    def score(self, predictions: Sequence[Prediction]) -> dict[str, Any]:
        """Returns the share of right answers; with `circular`, of questions right in all their rotations."""
        if not self.circular:
            return super().score(predictions)
        rotations: dict[int, list[tuple[Question, float]]] = defaultdict(list)
        for question, prediction in self.pairs(predictions):
            if prediction.hit is not None:
                rotations[self._base_index(question)].append((question, prediction.hit))
        scores = mean_by_groups((pairs[0][0].groups, min(hit for _, hit in pairs)) for pairs in rotations.values())
        single = mean_by_groups((question.groups, hit) for pairs in rotations.values() for question, hit in pairs)
        return {**scores, "without_circular": single["overall"]}

    def _base_index(self, question: Question) -> int:
        try:
            return int(float(question.box_id)) % _ROTATION
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
