"""GQA (arXiv 1902.09506): accuracy, and the authors' measures beside it."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mg_llava.evaluation.benchmarks.base import Verdict, equal, id_text
from mg_llava.evaluation.benchmarks.files import read_json, require
from mg_llava.evaluation.benchmarks.kinds.vqa.challenge import VQA, write_json
from mg_llava.evaluation.benchmarks.labels import is_nothing
from mg_llava.evaluation.benchmarks.records import Prediction, Question
from mg_llava.evaluation.reading.gqa import consistency, distribution, is_among, steps
from mg_llava.evaluation.reading.published import lmms_exact_match
from xtuner.errors import XTunerError


@dataclass(kw_only=True, eq=False)
class GQA(VQA):
    """GQA testdev-balanced: answers from ``testdev_balanced_questions.json``; exact match, balanced questions only.

    Also the authors' other measures (`reading.gqa`): consistency over the entailed questions that were asked, the
    distribution of answers, and with `choices_file` validity and plausibility.
    Writes ``testdev_balanced_predictions.json`` for GQA's own script.

    Args:
        choices_file: the authors' ``testdev_choices.json``, relative to `data_root`, used where it is present.
        (others): see `VQA`.
    """

    choices_file: str | None = None

    @cached_property
    def _records(self) -> dict[str, dict[str, Any]]:
        """The authors' questions by id, those that are not balanced too."""
        return {} if self.answer_path is None else _read_objects(self.answer_path, ("answer",))

    @cached_property
    def _choices(self) -> dict[str, dict[str, Any]]:
        """Valid and plausible answers by question id; empty without the file."""
        path = None if self.choices_file is None else self.path(self.choices_file)
        return _read_objects(path, ()) if path is not None and os.path.exists(path) else {}

    def read_answers(self, path: str) -> dict[str, Any]:
        """Returns the authors' balanced questions by id."""
        return {key: record for key, record in self._records.items() if record.get("isBalanced", True)}

    def question(self, unique_id: str, row: dict[str, Any], answers: dict[str, Any]) -> Question:
        """Returns the question with its answer and the axes that GQA's script breaks scores down by."""
        known = answers.get(id_text(row["question_id"]))
        return Question(
            id=unique_id,
            text=str(row["text"]),
            pictures=(self.picture(row["image"]),),
            box_id=id_text(row["question_id"]),
            answer=None if known is None or is_nothing(known.get("answer")) else str(known["answer"]),
            groups={} if known is None else _gqa_groups(known),
        )

    def parse(self, question: Question, output: str) -> str | None:
        """Returns the answer in lower case without its full stop."""
        return output.strip().rstrip(".").lower()

    def hit(self, question: Question, parsed: str | None) -> float | None:
        """Returns whether the answer is the authors', word for word."""
        return None if question.answer is None else float(parsed == question.answer)

    def published(self, question: Question, output: str) -> dict[str, Verdict]:
        """Returns what GQA's own script (on LLaVA's predictions file) and lmms-eval say."""
        if question.answer is None:
            return {}
        return {
            "GQA": equal(self.parse(question, output), question.answer),
            "lmms-eval": (output, float(lmms_exact_match(output, question.answer))),
        }

    def means(self, predictions: Sequence[Prediction]) -> dict[str, dict[str, float]]:
        """Returns consistency, validity and plausibility, each of the questions whose files carry what it needs."""
        answers = {question.box_id: one.parsed or "" for question, one in self.pairs(predictions)}
        scored = [(question.id, question.box_id, hit) for question, hit in self.scored(predictions)]
        consistent = ((name, consistency(key, self._records, answers)) for name, key, hit in scored if hit == 1)
        measures = {"consistency": {name: value for name, value in consistent if value is not None}}
        for measure, kind in (("validity", "valid"), ("plausibility", "plausible")):
            measures[measure] = {
                name: float(is_among(answers[key], self._choices[key].get(kind) or (), self._records[key]))
                for name, key, _ in scored
                if key in self._choices
            }
        return measures

    def beside(self, predictions: Sequence[Prediction]) -> dict[str, Any]:
        """Returns the distribution of answers (less is better) and how much of what consistency needs was asked."""
        if not self._records:
            return {}
        answers = {question.box_id: one.parsed or "" for question, one in self.pairs(predictions)}
        scored = [question.box_id for question, _ in self.scored(predictions)]
        entailed = {other for key in scored for other in self._records[key].get("entailed") or ()}
        distance = distribution((self._records[key], answers[key]) for key in scored)
        return {
            **({} if distance is None else {"distribution": distance}),
            "num_entailed_questions": len(entailed),
            "num_entailed_questions_asked": len(entailed & answers.keys()),
            "num_questions_with_choices": sum(key in self._choices for key in scored),
        }

    def write_files(self, folder: str, predictions: Sequence[Prediction]) -> list[str]:
        """Writes ``[{"questionId", "prediction"}]``."""
        rows = [
            {"questionId": question.box_id, "prediction": prediction.parsed}
            for question, prediction in self.pairs(predictions)
        ]
        return [write_json(os.path.join(folder, "testdev_balanced_predictions.json"), rows)]


def _gqa_groups(question: dict[str, Any]) -> dict[str, str]:
    types: dict[str, str] = defaultdict(str, question.get("types") or {})
    return {
        "form": "open" if types["structural"] == "query" else "binary",
        "structural": types["structural"],
        "semantic": types["semantic"],
        "steps": str(steps(question)),
        "words": str(len(question["question"].split())),
    }


def _read_objects(path: str, keys: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Reads one of GQA's files: an object of objects by question id that all have `keys`."""
    records = read_json(path)
    if not isinstance(records, dict):
        raise XTunerError(f"'{path}': expected GQA's object of questions by id, found {type(records).__name__}.")
    require(((f"question {key}", record) for key, record in records.items()), keys, path)
    return records
