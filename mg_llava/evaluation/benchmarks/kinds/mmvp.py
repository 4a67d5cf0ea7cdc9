"""MMVP (arXiv 2401.06209): pairs of pictures that CLIP confuses; both questions of a pair must be right."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from typing import Any

from mg_llava.evaluation.benchmarks.base import mean_by_groups, unique_ids
from mg_llava.evaluation.benchmarks.files import read_table, require
from mg_llava.evaluation.benchmarks.records import Prediction, Question
from mg_llava.evaluation.benchmarks.units import whole_units
from mg_llava.evaluation.judging.verdicts import JudgedBenchmark, with_verdict
from mg_llava.evaluation.reading.answers import option_letter, yes_or_no
from xtuner.errors import XTunerError

_OPTION = re.compile(r"\(([a-z])\)\s*(.*?)\s*(?=\([a-z]\)|$)", re.DOTALL)
_COLUMNS = ("Index", "Question", "Options", "Correct Answer")


class MMVP(JudgedBenchmark):
    """``Questions.csv`` (Index, Question, Options, Correct Answer) and ``MMVP Images/<Index>.jpg``.

    ``overall`` is the share of pairs (1, 2), (3, 4), … with both right; ``accuracy`` counts questions; half a pair
    counts only there and in ``num_incomplete_groups``. Where no option
    can be read from an answer, a judge is asked, in the authors' words.
    """

    def read_questions(self) -> list[Question]:
        """Reads the table; a row without a needed cell is named by its number."""
        rows = read_table(self.data_path, separator=",")
        require(((f"row {number}", row) for number, row in enumerate(rows, start=1)), _COLUMNS[:3], self.data_path)
        ids = unique_ids(row["Index"] for row in rows)
        return [
            Question(
                id=unique_id,
                text=f"{row['Question']} {row['Options']}",
                pictures=(self.picture(f"MMVP Images/{_index(row, self.data_path)}.jpg"),),
                box_id=str(_index(row, f"'{self.data_path}' row {number}")),
                answer=row.get("Correct Answer", "").strip().strip("()").upper() or None,
                options={letter.upper(): text for letter, text in _OPTION.findall(row["Options"])},
            )
            for number, (unique_id, row) in enumerate(zip(ids, rows, strict=True), start=1)
        ]

    def parse(self, question: Question, output: str) -> str | None:
        """Returns the letter that the answer chooses."""
        lower = re.fullmatch(r"\s*\(([a-z])\).*", output, re.DOTALL)
        if lower and lower.group(1).upper() in question.options:
            return lower.group(1).upper()
        return option_letter(output, question.options)

    def judge_prompt(self, question: Question, output: str) -> str | None:
        """Returns the authors' question whether the answer is the right one, where no option could be read."""
        if question.answer is None or self.parse(question, output) is not None:
            return None
        return (
            f"Given the following question {question.text}, the correct answer is ({question.answer.lower()}). Does "
            f"the following answer correctly answers the question, answer:{output}? Response with only yes or no."
        )

    def read_judgement(self, question: Question, prediction: Prediction, reply: str) -> Prediction:
        """Returns the prediction as right where the judge says yes."""
        verdict = yes_or_no(reply)
        return prediction if verdict is None else with_verdict(prediction, float(verdict == "yes"))

    def score(self, predictions: Sequence[Prediction]) -> dict[str, Any]:
        """Returns the share of pairs that are right in both questions, and the share of right questions."""
        scored = self.scored(predictions)
        pairs, incomplete = whole_units(scored, self.unit, _is_pair)
        single = mean_by_groups((question.groups, hit) for question, hit in scored)
        return {
            **mean_by_groups(({}, min(hit for _, hit in pair)) for pair in pairs),
            "accuracy": single["overall"],
            "num_incomplete_groups": incomplete,
        }

    def unit(self, question: Question) -> int:
        """Returns the number of the pair."""
        return (int(question.box_id) - 1) // 2

    def write_files(self, folder: str, predictions: Sequence[Prediction]) -> list[str]:
        """Writes ``answers.jsonl`` for the authors' script."""
        path = os.path.join(folder, "answers.jsonl")
        with open(path, "w", encoding="utf-8") as file:
            for question, prediction in self.pairs(predictions):
                row = {
                    "question_id": int(question.box_id),
                    "prompt": question.text,
                    "answer": f"({(question.answer or '').lower()})",
                    "response": prediction.output or "",
                    "metadata": {},
                }
                file.write(json.dumps(row) + "\n")
        return [path]


def _is_pair(questions: Sequence[Question]) -> bool:
    return len(questions) == len({question.box_id for question in questions}) == 2


def _index(row: dict[str, str], where: str) -> int:
    try:
        return int(float(row["Index"]))
    except ValueError as error:
        raise XTunerError(
            f"{where}: Index is '{row['Index']}', expected a number, which finds the pairs. Download the file again."
        ) from error
