"""Open questions in the authors' JSON lists: ChartQA and TallyQA."""

from __future__ import annotations

import os
from collections.abc import Sequence
from statistics import fmean
from typing import Any, ClassVar

from mg_llava.evaluation.benchmarks.base import Benchmark, Verdict, unique_ids
from mg_llava.evaluation.benchmarks.files import read_records
from mg_llava.evaluation.benchmarks.labels import answers_of, is_nothing
from mg_llava.evaluation.benchmarks.records import Prediction, Question
from mg_llava.evaluation.benchmarks.requests import CHART, SHORT_ANSWER, Requests
from mg_llava.evaluation.reading.answers import short_answer
from mg_llava.evaluation.reading.metrics import relaxed_match
from mg_llava.evaluation.reading.numbers import read_number
from mg_llava.evaluation.reading.published import relaxed_correctness
from mg_llava.evaluation.reading.vqa_answers import normalise


class ChartQA(Benchmark):
    """``test_human.json`` and ``test_augmented.json``: lists of ``{imgname, query, label}``; relaxed accuracy.

    Each file is a group named as the file; overall = mean over the files. `label` may be a list of right answers.
    """

    requests: ClassVar[Requests] = CHART
    strict_differs: ClassVar[bool] = True

    def read_questions(self) -> list[Question]:
        """Reads the files; a record without its fields is named."""
        questions: list[Question] = []
        for path in self.data_paths:
            split = os.path.splitext(os.path.basename(path))[0]
            for row in read_records(path, ("imgname", "query")):
                questions.append(
                    Question(
                        # the authors give no ids; boxes made for this benchmark count through all files
                        id=str(len(questions)),
                        text=str(row["query"]),
                        pictures=(self.picture(row["imgname"]),),
                        box_id=str(len(questions)),
                        answer=answers_of(row.get("label")),
                        groups={"split": split},
                    )
                )
        return questions

    def parse(self, question: Question, output: str) -> str | None:
        """Returns the answer without outer spaces."""
        return output.strip() or None

    def hit(self, question: Question, parsed: str | None) -> float | None:
        """Returns whether the answer is near enough to a right one, see `metrics.relaxed_match`."""
        if question.answer is None:
            return None
        matches = (
            relaxed_match(parsed or "", answer, strict_reference=self.strict_reference) for answer in question.answer
        )
        return float(any(matches))

    def published(self, question: Question, output: str) -> dict[str, Verdict]:
        """Returns what the relaxed correctness that all published scorers share says."""
        if question.answer is None:
            return {}
        text = output.strip()
        hit = any(relaxed_correctness(text, answer) for answer in question.answer)
        return {"relaxed correctness (Pix2Struct, VLMEvalKit, lmms-eval)": (text, float(hit))}

    def score(self, predictions: Sequence[Prediction]) -> dict[str, Any]:
        """Returns the mean of the files' accuracies as ``overall``."""
        scores = super().score(predictions)
        splits = scores["groups"].get("split", {})
        return {**scores, "overall": fmean(splits.values()) if splits else None}


class TallyQA(Benchmark):
    """``test.json``: a list of ``{image, question, answer, question_id, issimple?}``; exact match of the count."""

    requests: ClassVar[Requests] = SHORT_ANSWER

    def read_questions(self) -> list[Question]:
        """Reads the list; a record without its fields is named."""
        rows = read_records(self.data_path, ("image", "question", "question_id"))
        return [
            Question(
                id=unique_id,
                text=str(row["question"]),
                pictures=(self.picture(row["image"]),),
                box_id=str(row["question_id"]),
                answer=None if is_nothing(row.get("answer")) else _count(str(row["answer"])),
                groups={"kind": "simple" if row["issimple"] else "complex"} if "issimple" in row else {},
            )
            for unique_id, row in zip(unique_ids(row["question_id"] for row in rows), rows, strict=True)
        ]

    def parse(self, question: Question, output: str) -> str | None:
        """Returns the count in digits, see `numbers.read_number`; else the words."""
        return _count(output) or None


def _count(text: str) -> str:
    number = read_number(text)
    return normalise(short_answer(text)) if number is None else f"{number.value * number.scale:.12g}"
