"""VizWiz (arXiv 1802.08218): questions of blind people; many pictures do not show the answer."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from mg_llava.evaluation.benchmarks.base import unique_ids
from mg_llava.evaluation.benchmarks.files import read_questions, read_records
from mg_llava.evaluation.benchmarks.kinds.vqa.challenge import VQA, texts, write_json
from mg_llava.evaluation.benchmarks.labels import is_nothing
from mg_llava.evaluation.benchmarks.records import Prediction, Question
from mg_llava.evaluation.benchmarks.requests import VIZ_WIZ, Requests
from xtuner.errors import XTunerError

UNANSWERABLE = "unanswerable"
_LINES = ".jsonl"


@dataclass(kw_only=True, eq=False)
class VizWiz(VQA):
    """The authors' ``val.json`` or ``test.json``, or LLaVA's ``llava_test.jsonl``; writes ``upload.json``.

    The authors' lists are of ``{image, question, answers?, answer_type?, answerable?}``, LLaVA's lines of
    ``{question_id, image, text}`` with the request in the text. Answers come from the list itself, or from
    `answer_file` (the authors' list) by picture. ``unanswerable`` is how well the answer "unanswerable" finds the
    questions that nobody can answer.
    """

    requests: ClassVar[Requests] = VIZ_WIZ

    def read_questions(self) -> list[Question]:
        """Reads questions and answers; a record without its fields is named."""
        if self.data_path.endswith(_LINES):
            rows = read_questions(self.data_path, ("image", "text"))
            known = {} if self.answer_path is None else self.read_answers(self.answer_path)
        else:
            rows = [{**row, "text": row["question"]} for row in read_records(self.data_path, ("image", "question"))]
            known = {str(row["image"]): row for row in rows}
            known |= {} if self.answer_path is None else self.read_answers(self.answer_path)
        ids = unique_ids(row["image"] for row in rows)
        return [self.question(unique_id, row, known) for unique_id, row in zip(ids, rows, strict=True)]

    def read_answers(self, path: str) -> dict[str, Any]:
        """Reads the authors' list of answers by picture."""
        return {str(row["image"]): row for row in read_records(path, ("image", "answers"))}

    def question(self, unique_id: str, row: dict[str, Any], answers: dict[str, Any]) -> Question:
        """Returns the question of a record, grouped by the type of its answer and by whether there is one."""
        known = answers.get(str(row["image"]), {})
        groups = {} if is_nothing(known.get("answer_type")) else {"answer_type": str(known["answer_type"])}
        if not is_nothing(known.get("answerable")):
            groups["answerable"] = "yes" if str(known["answerable"]) in ("1", "1.0", "True") else "no"
        return Question(
            id=unique_id,
            text=str(row["text"]),
            pictures=(self.picture(row["image"]),),
            box_id=str(row["image"]),
            answer=self._people_said(known, unique_id) or None,
            groups=groups,
        )

    def _people_said(self, known: Mapping[str, Any], unique_id: str) -> list[str]:
        answers = known.get("answers") or ()
        try:
            return texts(one["answer"] if isinstance(one, Mapping) else one for one in answers)
        except (TypeError, KeyError) as error:
            raise XTunerError(
                f"'{self.answer_path or self.data_path}' picture {unique_id}: expected answers as a list of "
                f"{{answer, …}}, found {answers!r:.80}."
            ) from error

    def prompt(self, question: Question) -> str:
        """Returns the question and the request; lines of LLaVA's file hold it already."""
        held = self.request is None and self.data_path.endswith(_LINES)
        return question.text if held else super().prompt(question)

    def score(self, predictions: Sequence[Prediction]) -> dict[str, Any]:
        """Returns the VQA accuracy, and ``unanswerable``: precision, recall and F1 of saying so."""
        labelled = [
            (question.groups["answerable"] == "no", one.parsed == UNANSWERABLE)
            for question, one in self.pairs(predictions)
            if "answerable" in question.groups
        ]
        scores = super().score(predictions)
        return {**scores, UNANSWERABLE: _rates(labelled)} if labelled else scores

    def write_files(self, folder: str, predictions: Sequence[Prediction]) -> list[str]:
        """Writes ``upload.json`` for the challenge's server: ``[{"image", "answer"}]``."""
        rows = [
            {"image": question.box_id, "answer": one.parsed or UNANSWERABLE}
            for question, one in self.pairs(predictions)
        ]
        return [write_json(os.path.join(folder, "upload.json"), rows)]


def _rates(pairs: Sequence[tuple[bool, bool]]) -> dict[str, float]:
    """Precision, recall and F1 of (is so, is said to be so); 0 where there is nothing to divide by."""
    is_so, said, both = (sum(map(rule, pairs)) for rule in (lambda p: p[0], lambda p: p[1], all))
    precision, recall = both / said if said else 0.0, both / is_so if is_so else 0.0
    return {"precision": precision, "recall": recall, "f1": 2 * both / (said + is_so) if both else 0.0}
