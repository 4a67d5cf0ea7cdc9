"""Questions with one short answer, scored by exact match: the tiny world's test."""

from __future__ import annotations

from typing import Any

from mg_llava.evaluation.benchmarks.base import Benchmark, unique_ids
from mg_llava.evaluation.benchmarks.files import read_records
from mg_llava.evaluation.benchmarks.records import Picture, Question
from mg_llava.evaluation.reading.answers import same_short_answer, short_answer


class ShortAnswer(Benchmark):
    """A JSON list of ``{id, image, question, answer, kind}``; right by `answers.same_short_answer`.

    `image` may be absent, or `video` stand in its place; scores are broken down by `kind`.
    """

    def read_questions(self) -> list[Question]:
        """Reads the JSON list; a record without question or answer is named by its number."""
        rows = read_records(self.data_path, ("id", "question", "answer"))
        return [
            Question(
                id=unique_id,
                text=str(row["question"]),
                pictures=self._pictures(row),
                box_id=str(row["id"]),
                answer=short_answer(str(row["answer"])),
                groups={"kind": str(row["kind"])} if "kind" in row else {},
            )
            for unique_id, row in zip(unique_ids(row["id"] for row in rows), rows, strict=True)
        ]

    def _pictures(self, row: dict[str, Any]) -> tuple[Picture, ...]:
        if row.get("video"):
            return (self.clip(str(row["video"])),)
        return (self.picture(row["image"]),) if row.get("image") else ()

    def parse(self, question: Question, output: str) -> str | None:
        """Returns the normalised answer."""
        return short_answer(output) or None

    def hit(self, question: Question, parsed: str | None) -> float | None:
        """Returns whether the answer is the right one, see `answers.same_short_answer`."""
        return float(parsed is not None and same_short_answer(parsed, question.answer))
