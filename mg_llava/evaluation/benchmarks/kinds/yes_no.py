"""Yes/no questions about objects: POPE (arXiv 2305.10355)."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from mg_llava.evaluation.benchmarks.base import Benchmark, unique_ids
from mg_llava.evaluation.benchmarks.files import read_questions
from mg_llava.evaluation.benchmarks.records import Prediction, Question


class YesNo(Benchmark):
    """JSON-lines files of ``{question_id, image, text, label}``, one per kind of negative; overall = mean of their F1.

    Each file is a group named as the file.
    """

    def read_questions(self) -> list[Question]:
        """Reads the files; a line without its fields is named."""
        questions = []
        for path in self.data_paths:
            category = os.path.splitext(os.path.basename(path))[0]
            rows = read_questions(path, ("question_id", "image", "text"))
            for unique_id, row in zip(unique_ids(row["question_id"] for row in rows), rows, strict=True):
                label = row.get("label")
                questions.append(
                    Question(
                        id=f"{category}/{unique_id}",
                        text=str(row["text"]),
                        pictures=(self.picture(row["image"]),),
                        box_id=str(row["question_id"]),
                        answer=None if label is None else str(label).strip().lower(),
                        groups={"category": category},
                    )
                )
        return questions

    def prompt(self, question: Question) -> str:
        """Returns the question and the request for yes or no."""
        return f"{question.text}\nPlease answer the question with yes or no."

    def parse(self, question: Question, output: str) -> str | None:
        """Returns "no" where the first sentence holds no or not, else "yes" (POPE's own rule); None without words."""
        words = re.findall(r"[a-z']+", output.split(".")[0].lower())
        if not words:
            return None
        return "no" if {"no", "not"} & set(words) else "yes"

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
