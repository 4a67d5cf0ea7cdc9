"""Multiple choice in the authors' own files: SEED-Bench (arXiv 2307.16125) and V*Bench (arXiv 2312.14135)."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mg_llava.evaluation.benchmarks.base import id_text, unique_ids
from mg_llava.evaluation.benchmarks.files import read_json, read_questions, refuse, require
from mg_llava.evaluation.benchmarks.kinds.multiple_choice import MultipleChoice
from mg_llava.evaluation.benchmarks.labels import is_nothing
from mg_llava.evaluation.benchmarks.records import Prediction, Question
from mg_llava.evaluation.benchmarks.requests import LETTER_REQUEST
from xtuner.errors import XTunerError

_CHOICES = {"A": "choice_a", "B": "choice_b", "C": "choice_c", "D": "choice_d"}
_OPTION_LINE = re.compile(r"^[ \t]*\(([A-Z])\)[ \t]*(.*?)[ \t]*$", re.MULTILINE)


class ChoiceFile(MultipleChoice):
    """Questions of a file that is no table."""

    def checked(self, questions: Sequence[Question]) -> list[Question]:
        """Returns the questions.

        Raises:
            ProblemsError: an answer is none of its question's options, or a question has none; every one is named.
        """
        problems = [f"question {one.id}: no options" for one in questions if not one.options]
        problems += [
            f"question {one.id}: its answer is {one.answer!r}, expected one of its options {', '.join(one.options)}"
            for one in questions
            if one.options and one.answer is not None and one.answer not in one.options
        ]
        refuse(problems, self.data_path)
        return list(questions)


@dataclass(kw_only=True, eq=False)
class SEEDBench(ChoiceFile):
    """``SEED-Bench.json``: accuracy over all questions about images, and by task.

    Questions about videos are left out and counted (``num_video_questions_left_out``). Writes ``upload.jsonl`` for the
    leaderboard.
    """

    def read_questions(self) -> list[Question]:
        """Reads ``{"questions": […], "question_type": {task: number}}``; a record without its fields is named."""
        rows, tasks = self._read()
        rows = [row for row in rows if _is_image(row)]
        ids = unique_ids(row["question_id"] for row in rows)
        return self.checked(
            [
                Question(
                    id=unique_id,
                    text=str(row["question"]),
                    pictures=(self.picture(row["data_id"]),),
                    box_id=id_text(row["question_id"]),
                    answer=None if is_nothing(row.get("answer")) else str(row["answer"]).strip().upper(),
                    options={letter: str(row[key]) for letter, key in _CHOICES.items() if not is_nothing(row.get(key))},
                    groups={"task": tasks.get(id_text(row["question_type_id"]), id_text(row["question_type_id"]))},
                )
                for unique_id, row in zip(ids, rows, strict=True)
            ]
        )

    def _read(self) -> tuple[list[dict[str, Any]], dict[str, str]]:
        content = read_json(self.data_path)
        if not isinstance(content, dict) or not isinstance(content.get("questions"), list):
            raise XTunerError(f"'{self.data_path}': expected SEED-Bench's object with a list 'questions'.")
        rows = content["questions"]
        needed = ("question_id", "question", "data_id", "question_type_id")
        require(((f"question {number}", row) for number, row in enumerate(rows, start=1)), needed, self.data_path)
        return rows, {id_text(number): str(task) for task, number in (content.get("question_type") or {}).items()}

    def beside(self, predictions: Sequence[Prediction]) -> dict[str, Any]:
        """Returns how many questions about videos were left out."""
        return {"num_video_questions_left_out": sum(not _is_image(row) for row in self._read()[0])}

    def write_files(self, folder: str, predictions: Sequence[Prediction]) -> list[str]:
        """Writes ``upload.jsonl``: ``{"question_id", "prediction"}`` by line."""
        path = os.path.join(folder, "upload.jsonl")
        with open(path, "w", encoding="utf-8") as file:
            for question, one in self.pairs(predictions):
                row = {"question_id": question.box_id, "prediction": one.parsed or one.output}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        return [path]


def _is_image(row: dict[str, Any]) -> bool:
    return str(row.get("data_type") or "image") == "image"


@dataclass(kw_only=True, eq=False)
class VStarBench(ChoiceFile):
    """``test_questions.jsonl``: ``{question_id, image, text, category, label}``; the text holds "(A) …" lines.

    ``overall`` is the accuracy over all questions; scores are broken down by `category`.
    """

    def read_questions(self) -> list[Question]:
        """Reads the lines; one without its fields, or whose label is no option, is named."""
        rows = read_questions(self.data_path, ("question_id", "image", "text"))
        ids = unique_ids(row["question_id"] for row in rows)
        return self.checked(
            [
                Question(
                    id=unique_id,
                    text=_OPTION_LINE.split(str(row["text"]))[0].strip(),
                    pictures=(self.picture(row["image"]),),
                    box_id=id_text(row["question_id"]),
                    answer=None if is_nothing(row.get("label")) else str(row["label"]).strip("() ").upper(),
                    options=dict(_OPTION_LINE.findall(str(row["text"]))),
                    groups={} if is_nothing(row.get("category")) else {"category": str(row["category"])},
                )
                for unique_id, row in zip(ids, rows, strict=True)
            ]
        )

    def prompt(self, question: Question) -> str:
        """Returns question, options and request, as the authors' text has them."""
        options = (f"({letter}) {text}" for letter, text in question.options.items())
        return "\n".join([question.text, *options, self.wording[1] or LETTER_REQUEST])
