"""Yes/no questions about objects: POPE (arXiv 2305.10355)."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean
from typing import Any, ClassVar

from mg_llava.evaluation.benchmarks.base import Benchmark, Verdict, equal, id_text, unique_ids
from mg_llava.evaluation.benchmarks.files import read_questions
from mg_llava.evaluation.benchmarks.labels import yes_no_labels
from mg_llava.evaluation.benchmarks.records import Prediction, Question
from mg_llava.evaluation.benchmarks.requests import POPE, Requests
from mg_llava.evaluation.reading.answers import leading_yes_or_no
from mg_llava.evaluation.reading.published import exact_yes_or_no, kit_yes_or_no, pope_yes_or_no


class YesNo(Benchmark):
    """JSON-lines files of ``{question_id, image, text, label}``, one per kind of negative; overall = mean of their F1.

    Each file is a group named as the file; a label is yes or no in any usual writing, see `answers.yes_no_label`.
    """

    requests: ClassVar[Requests] = POPE
    strict_differs: ClassVar[bool] = True

    def read_questions(self) -> list[Question]:
        """Reads the files; a line without its fields is named."""
        questions = []
        for path in self.data_paths:
            category = os.path.splitext(os.path.basename(path))[0]
            rows = read_questions(path, ("question_id", "image", "text"))
            labels = yes_no_labels(((f"question {n}", row.get("label")) for n, row in enumerate(rows, start=1)), path)
            ids = unique_ids(row["question_id"] for row in rows)
            for unique_id, row, label in zip(ids, rows, labels, strict=True):
                questions.append(
                    Question(
                        id=f"{category}/{unique_id}",
                        text=str(row["text"]),
                        pictures=(self.picture(row["image"]),),
                        box_id=id_text(row["question_id"]),
                        answer=label,
                        groups={"category": category},
                    )
                )
        return questions

    def parse(self, question: Question, output: str) -> str | None:
        """Returns the yes or no that the answer begins with, else what POPE's own rule reads; None without words.

        That rule, the only one of `strict_reference`: "no" where the first sentence holds no or not, else "yes".
        """
        if not self.strict_reference and (begun := leading_yes_or_no(output)) is not None:
            return begun
        words = re.findall(r"[a-z']+", output.split(".")[0].lower())
        if not words:
            return None
        return "no" if {"no", "not"} & set(words) else "yes"

    def published(self, question: Question, output: str) -> dict[str, Verdict]:
        """Returns what POPE's own script, VLMEvalKit and lmms-eval say."""
        return {
            "POPE": equal(pope_yes_or_no(output), question.answer),
            "VLMEvalKit": equal(kit_yes_or_no(output), question.answer),
            "lmms-eval": equal(exact_yes_or_no(output), question.answer),
        }

    def score(self, predictions: Sequence[Prediction]) -> dict[str, Any]:
        """Returns the mean F1 as ``overall`` and, per file, F1, accuracy, precision, recall and share of yes."""
        by_category: dict[str, list[tuple[str, str | None]]] = defaultdict(list)
        for question, prediction in self.pairs(predictions):
            if question.answer is not None:
                by_category[question.groups["category"]].append((question.answer, prediction.parsed))
        rates = {category: _rates(pairs) for category, pairs in by_category.items()}
        names = ("f1", "accuracy", "precision", "recall", "yes_ratio")
        means = {name: fmean(rate[name] for rate in rates.values()) for name in names} if rates else {}
        return {
            "overall": means.get("f1"),
            **means,
            "groups": {"category": {category: rate["f1"] for category, rate in rates.items()}},
            "per_category": rates,
        }


def _rates(pairs: Sequence[tuple[str, str | None]]) -> dict[str, float]:
    """Rates of (answer, parsed) pairs with yes as the positive class; what could not be read counts as wrong."""
    says_yes = sum(parsed == "yes" for _, parsed in pairs)
    positives = sum(answer == "yes" for answer, _ in pairs)
    true_yes = sum(answer == parsed == "yes" for answer, parsed in pairs)
    right = sum(answer == parsed for answer, parsed in pairs)
    precision = true_yes / says_yes if says_yes else 0.0
    recall = true_yes / positives if positives else 0.0
    return {
        "f1": 2 * precision * recall / (precision + recall) if true_yes else 0.0,
        "accuracy": right / len(pairs),
        "precision": precision,
        "recall": recall,
        "yes_ratio": says_yes / len(pairs),
    }
