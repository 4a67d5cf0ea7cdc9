"""Open questions: VQAv2 and TextVQA, with the question files that LLaVA's evaluation made common."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from mg_llava.evaluation.benchmarks.base import Benchmark, id_text, unique_ids
from mg_llava.evaluation.benchmarks.files import read_json, read_questions
from mg_llava.evaluation.benchmarks.labels import is_nothing
from mg_llava.evaluation.benchmarks.records import Prediction, Question
from mg_llava.evaluation.benchmarks.requests import LLAVA_FILE, Requests
from mg_llava.evaluation.reading.vqa_answers import normalise, vqa_accuracy, vqa_formula
from xtuner.errors import XTunerError

_OCR_HINT = "Reference OCR token:"


@dataclass(kw_only=True, eq=False)
class VQA(Benchmark):
    """JSON lines of ``{question_id, image, text}``; the text already holds the request for a short answer.

    Subclasses say where answers come from; without any, predictions are written and not scored. Answers are normalised
    and scored as the VQA challenges do (`vqa_answers`).

    Args:
        answer_file: the authors' answers, relative to `data_root`; None = not scored.
        (others): see `Benchmark`.
    """

    requests: ClassVar[Requests] = LLAVA_FILE

    answer_file: str | None = None

    @property
    def answer_path(self) -> str | None:
        """The authors' answers, or None."""
        return None if self.answer_file is None else self.path(self.answer_file)

    def files(self) -> list[str]:
        """Returns question file, answers, picture folder and box file."""
        return [*super().files(), *([] if self.answer_path is None else [self.answer_path])]

    def read_questions(self) -> list[Question]:
        """Reads questions and answers; a line without its fields is named."""
        rows = read_questions(self.data_path, ("question_id", "image", "text"))
        answers = {} if self.answer_path is None else self.read_answers(self.answer_path)
        return [
            self.question(unique_id, row, answers)
            for unique_id, row in zip(unique_ids(row["question_id"] for row in rows), rows, strict=True)
        ]

    def read_answers(self, path: str) -> dict[str, Any]:
        """Reads VQAv2's annotations: ``{"annotations": [{"question_id", "answers": [{"answer"}]}]}`` by question id."""
        try:
            annotations = read_json(path)["annotations"]
            return {
                id_text(row["question_id"]): texts(one["answer"] for one in row["answers"])
                for row in annotations
                if row["answers"]
            }
        except (KeyError, TypeError) as error:
            raise XTunerError(f"'{path}' does not have the form of VQAv2's annotation file: {error!r}.") from error

    def question(self, unique_id: str, row: dict[str, Any], answers: dict[str, Any]) -> Question:
        """Returns the question that a line of the question file holds."""
        return Question(
            id=unique_id,
            text=str(row["text"]),
            pictures=(self.picture(row["image"]),),
            box_id=id_text(row["question_id"]),
            answer=answers.get(id_text(row["question_id"])) or None,
        )

    def rules(self, questions: Sequence[Question]) -> dict[str, Any]:
        """Returns by which formula so many questions score: that of ten answers fits ten only."""
        counts = Counter(vqa_formula(len(one.answer)) for one in questions if isinstance(one.answer, list))
        return {"formulas": dict(counts)} if counts else {}

    def parse(self, question: Question, output: str) -> str | None:
        """Returns the answer as the challenge normalises it; "" is an answer too."""
        return normalise(output)

    def hit(self, question: Question, parsed: str | None) -> float | None:
        """Returns the VQA accuracy against people's answers."""
        return None if question.answer is None or parsed is None else vqa_accuracy(parsed, question.answer)


@dataclass(kw_only=True, eq=False)
class VQAv2(VQA):
    """VQAv2: writes ``upload.json`` for the server; scored here where `answer_file` gives annotations.

    Args:
        upload_questions: JSON lines with every question that the server wants, in its order, relative to `data_root`;
            those not asked (the test set beyond test-dev) get an empty answer; None = the questions asked.
        (others): see `VQA`.
    """

    upload_questions: str | None = None

    def files(self) -> list[str]:
        """Returns the files of `VQA` and the list of questions to upload."""
        return [*super().files(), *([] if self.upload_questions is None else [self.path(self.upload_questions)])]

    def write_files(self, folder: str, predictions: Sequence[Prediction]) -> list[str]:
        """Writes ``upload.json``: ``[{"question_id", "answer"}]``."""
        answers = {prediction.id: prediction.parsed or "" for prediction in predictions}
        path = self.data_path if self.upload_questions is None else self.path(self.upload_questions)
        rows = read_questions(path, ("question_id",))
        upload = [
            {"question_id": row["question_id"], "answer": answers.get(id_text(row["question_id"]), "")} for row in rows
        ]
        return [write_json(os.path.join(folder, "upload.json"), upload)]


@dataclass(kw_only=True, eq=False)
class TextVQA(VQA):
    """TextVQA validation: answers from ``TextVQA_0.5.1_val.json`` by picture and question, as ids differ between files.

    Args:
        ocr_hints: keep the question file's line of words that an OCR system read; False asks without.
        (others): see `VQA`.
    """

    ocr_hints: bool = True

    def read_answers(self, path: str) -> dict[str, Any]:
        """Reads ``{"data": [{"image_id", "question", "answers"}]}`` by picture and question."""
        try:
            rows = read_json(path)["data"]
            return {_textvqa_key(row["image_id"], row["question"]): texts(row["answers"]) for row in rows}
        except (KeyError, TypeError) as error:
            raise XTunerError(f"'{path}' does not have the form of TextVQA's annotation file: {error!r}.") from error

    def question(self, unique_id: str, row: dict[str, Any], answers: dict[str, Any]) -> Question:
        """Returns the question of a line; its answers must be in the answer file, if there is one."""
        lines = [line for line in str(row["text"]).split("\n") if not line.startswith(_OCR_HINT)]
        key = _textvqa_key(row["question_id"], lines[0])
        if answers and key not in answers:
            raise XTunerError(
                f"'{self.data_path}' question {unique_id}: '{lines[0]}' has no answers in '{self.answer_path}': the "
                "two files are of different versions; take TextVQA 0.5.1."
            )
        return Question(
            id=unique_id,
            text=str(row["text"]) if self.ocr_hints else "\n".join(lines),
            pictures=(self.picture(row["image"]),),
            box_id=id_text(row["question_id"]),
            answer=answers.get(key) or None,
        )


def _textvqa_key(image_id: Any, question: Any) -> str:
    return f"{image_id}\n{str(question).strip().lower()}"


def texts(answers: Iterable[Any]) -> list[str]:
    """Returns answers as text; nulls and empty ones are left out."""
    return [str(answer) for answer in answers if not is_nothing(answer)]


def write_json(path: str, content: Any) -> str:
    """Writes a JSON file; returns its path."""
    with open(path, "w", encoding="utf-8") as file:
        json.dump(content, file, ensure_ascii=False)
    return path
