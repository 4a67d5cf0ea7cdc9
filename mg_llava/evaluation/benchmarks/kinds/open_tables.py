"""Open questions in VLMEvalKit's tables: DocVQA and OCRVQA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mg_llava.evaluation.benchmarks.base import Verdict
from mg_llava.evaluation.benchmarks.labels import read_list
from mg_llava.evaluation.benchmarks.records import Question
from mg_llava.evaluation.benchmarks.requests import SHORT_ANSWER, Requests
from mg_llava.evaluation.benchmarks.tables import TableBenchmark
from mg_llava.evaluation.reading.answers import same_short_answer, short_answer
from mg_llava.evaluation.reading.metrics import anls


@dataclass(kw_only=True, eq=False)
class DocVQA(TableBenchmark):
    """A TSV of ``index, image, question, answer?, split?``, scored by ANLS; `answer` may be a list of answers."""

    requests: ClassVar[Requests] = SHORT_ANSWER

    def read_questions(self) -> list[Question]:
        """Reads the table; a row without index or question is named by its number."""
        return [
            self.question(place, (read_list(place[1]["answer"]) or None) if "answer" in place[1] else None, "split")
            for place in self.rows(("index", "question"))
        ]

    def parse(self, question: Question, output: str) -> str | None:
        """Returns the answer without outer spaces."""
        return output.strip() or None

    def hit(self, question: Question, parsed: str | None) -> float | None:
        """Returns the similarity to the nearest right answer, see `metrics.anls`."""
        return None if question.answer is None else anls(parsed or "", question.answer)


class OCRVQA(DocVQA):
    """The same table, scored by exact match of normalised answers (`answers.short_answer`).

    `strict_reference` compares words in lower case and nothing else, as VLMEvalKit does.
    """

    strict_differs: ClassVar[bool] = True

    def parse(self, question: Question, output: str) -> str | None:
        """Returns the normalised answer."""
        return (_lower(output) if self.strict_reference else short_answer(output)) or None

    def hit(self, question: Question, parsed: str | None) -> float | None:
        """Returns whether the answer is one of the right ones, see `answers.same_short_answer`."""
        if question.answer is None:
            return None
        if self.strict_reference:
            return float((parsed or "") in map(_lower, question.answer))
        return float(parsed is not None and any(same_short_answer(parsed, answer) for answer in question.answer))

    def published(self, question: Question, output: str) -> dict[str, Verdict]:
        """Returns what VLMEvalKit says."""
        if question.answer is None:
            return {}
        return {"VLMEvalKit": (_lower(output), float(_lower(output) in map(_lower, question.answer)))}


def _lower(text: str) -> str:
    return text.strip().lower()
