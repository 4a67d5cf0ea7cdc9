"""Free answers of any length that a judge grades: MM-Vet (arXiv 2308.02490) and LLaVA-Bench-in-the-Wild."""

from __future__ import annotations

import csv
import json
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from mg_llava.evaluation.benchmarks.base import mean_by_groups, unique_ids
from mg_llava.evaluation.benchmarks.files import read_json, read_questions, require
from mg_llava.evaluation.benchmarks.records import Prediction, Question
from mg_llava.evaluation.judging.prompts import LLAVA_BENCH_RULE, MM_VET_EXAMPLES
from mg_llava.evaluation.judging.verdicts import JudgedBenchmark, first_number, with_verdict
from xtuner.errors import XTunerError

_TWO_SCORES = re.compile(r"\s*(\d+(?:\.\d+)?)[\s,/]+(\d+(?:\.\d+)?)")


@dataclass(kw_only=True, eq=False)
class OpenAnswers(JudgedBenchmark):
    """JSON lines of ``{question_id, image, text}`` whose answers may be long.

    Args:
        max_new_tokens: as long as such answers need.
        (others): see `Benchmark`.
    """

    max_new_tokens: int = 1024

    def read_questions(self) -> list[Question]:
        """Reads the questions and what the judge must know; a line without its fields is named."""
        rows = read_questions(self.data_path, ("question_id", "image", "text"))
        known = self.read_references()
        return [
            Question(
                id=unique_id,
                text=str(row["text"]),
                pictures=(self.picture(row["image"]),),
                box_id=str(row["question_id"]),
                answer=known.get(str(row["question_id"])),
                groups=self.groups(row, known.get(str(row["question_id"]))),
            )
            for unique_id, row in zip(unique_ids(row["question_id"] for row in rows), rows, strict=True)
        ]

    def read_references(self) -> dict[str, Any]:
        """Returns what the judge compares with, by question id; nothing where the files are not given."""
        return {}

    def groups(self, row: dict[str, Any], known: Any) -> dict[str, str]:
        """Returns what scores are broken down by."""
        return {"category": str(row["category"])} if "category" in row else {}

    def parse(self, question: Question, output: str) -> str | None:
        """Returns the answer without outer spaces."""
        return output.strip() or None

    def hit(self, question: Question, parsed: str | None) -> float | None:
        """Returns None: only a judge can tell; an empty answer is worth nothing."""
        return None if question.answer is None or parsed is not None else 0.0


@dataclass(kw_only=True, eq=False)
class MMVet(OpenAnswers):
    """MM-Vet: writes ``upload.json`` for the authors' evaluator; judged here against ``mm-vet.json``.

    Args:
        answer_file: the authors' ``mm-vet.json``, relative to `data_root`; None = predictions only.
        (others): see `OpenAnswers`.
    """

    answer_file: str | None = None

    def files(self) -> list[str]:
        """Returns question file, answers, picture folder and box file."""
        return [*super().files(), *([] if self.answer_file is None else [self.path(self.answer_file)])]

    def read_references(self) -> dict[str, Any]:
        """Returns the authors' questions, answers and capabilities by id without ``v1_``."""
        if self.answer_file is None:
            return {}
        path = self.path(self.answer_file)
        known = read_json(path)
        if not isinstance(known, dict):
            raise XTunerError(f"'{path}': expected MM-Vet's object of questions by id, found {type(known).__name__}.")
        rows = [(f"question {key}", value if isinstance(value, dict) else {}) for key, value in known.items()]
        require(rows, ("answer",), path)
        return {key.removeprefix("v1_"): value for key, value in known.items()}

    def groups(self, row: dict[str, Any], known: Any) -> dict[str, str]:
        """Returns the set of capabilities that the question needs."""
        return {"capabilities": "+".join(sorted(known.get("capability") or ()))} if known else {}

    def judge_prompt(self, question: Question, output: str) -> str | None:
        """Returns the authors' table with a row for this answer, its score left open."""
        if question.answer is None or not output.strip():
            return None
        right = str(question.answer["answer"]).replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
        cells = [question.answer.get("question", question.text), right, output]
        return MM_VET_EXAMPLES + " | ".join(str(cell).replace("\n", " ") for cell in cells) + " | "

    def read_judgement(self, question: Question, prediction: Prediction, reply: str) -> Prediction:
        """Returns the prediction with the judge's score; one outside 0–1 is not a score."""
        number = first_number(reply)
        return prediction if number is None or not 0 <= number <= 1 else with_verdict(prediction, number)

    def score(self, predictions: Sequence[Prediction]) -> dict[str, Any]:
        """Returns the mean score, also by set of capabilities and by single capability, as the authors report it."""
        scores = super().score(predictions)
        single = [
            ({"capability": name}, one.hit)
            for question, one in self.pairs(predictions)
            for name in (question.answer or {}).get("capability") or ()
            if one.hit is not None
        ]
        return {**scores, "groups": {**scores["groups"], **mean_by_groups(single)["groups"]}}

    def write_files(self, folder: str, predictions: Sequence[Prediction]) -> list[str]:
        """Writes ``upload.json``, ``{"v1_<id>": answer}`` by id, and the authors' two tables of judged answers."""
        answers = {question.box_id: one.output or "" for question, one in self.pairs(predictions)}
        path = os.path.join(folder, "upload.json")
        order = sorted(answers, key=lambda key: (not key.isdigit(), int(key) if key.isdigit() else 0, key))
        with open(path, "w", encoding="utf-8") as file:
            json.dump({f"v1_{key}": answers[key] for key in order}, file, indent=2)
        return [path, *self._write_tables(folder, predictions)]

    def _write_tables(self, folder: str, predictions: Sequence[Prediction]) -> list[str]:
        """Writes ``cap-score.csv`` and ``cap-int-score.csv``: points of 100, what most questions need first."""
        judged = [
            (set((question.answer or {}).get("capability") or ()), hit) for question, hit in self.scored(predictions)
        ]
        if not judged:
            return []
        single: dict[str, list[float]] = defaultdict(list)
        together: dict[str, list[float]] = defaultdict(list)
        for names, hit in judged:
            together["_".join(sorted(names))].append(hit)
            for name in names:
                single[name].append(hit)
        paths = []
        for file_name, table in (("cap-score.csv", single), ("cap-int-score.csv", together)):
            columns = dict(sorted(table.items(), key=lambda item: (-len(item[1]), item[0])))
            columns["total"] = [hit for _, hit in judged]
            paths.append(os.path.join(folder, file_name))
            with open(paths[-1], "w", encoding="utf-8", newline="") as file:
                rows = csv.writer(file)
                rows.writerow(["", *columns])
                rows.writerow([self.name, *(f"{100 * fmean(hits):.1f}" for hits in columns.values())])
                rows.writerow(["questions", *(len(hits) for hits in columns.values())])
        return paths


@dataclass(kw_only=True, eq=False)
class LLaVABench(OpenAnswers):
    """LLaVA-Bench-in-the-Wild: a judge grades reference and answer 1–10; ``overall`` is their ratio (it may pass 1).

    Args:
        context_file: ``context.jsonl``, what the judge knows of each picture.
        answer_file: the reference answers, ``answers_gpt4.jsonl``.
        (others): see `OpenAnswers`.
    """

    judge_max_tokens = 1024

    context_file: str | None = None
    answer_file: str | None = None

    def files(self) -> list[str]:
        """Returns question file, context, reference answers, picture folder and box file."""
        return [*super().files(), *(self.path(file) for file in (self.context_file, self.answer_file) if file)]

    def read_references(self) -> dict[str, Any]:
        """Returns context and reference answer by question id."""
        if self.context_file is None or self.answer_file is None:
            return {}
        captions = read_questions(self.path(self.context_file), ("image", "caption"))
        contexts = {str(row["image"]): _text(row["caption"]) for row in captions}
        replies = read_questions(self.path(self.answer_file), ("question_id", "text"))
        answers = {str(row["question_id"]): str(row["text"]) for row in replies}
        return {
            key: {"context": contexts.get(str(row["image"]), ""), "reference": answers[key]}
            for row in read_questions(self.data_path, ("question_id", "image"))
            if (key := str(row["question_id"])) in answers
        }

    def judge_prompt(self, question: Question, output: str) -> str | None:
        """Returns context, question, both answers and the rule."""
        if question.answer is None or not output.strip():
            return None
        return (
            f"[Context]\n{question.answer['context']}\n\n[Question]\n{question.text}\n\n"
            f"[Assistant 1]\n{question.answer['reference']}\n\n[End of Assistant 1]\n\n"
            f"[Assistant 2]\n{output}\n\n[End of Assistant 2]\n\n[System]\n{LLAVA_BENCH_RULE}\n\n"
        )

    def read_judgement(self, question: Question, prediction: Prediction, reply: str) -> Prediction:
        """Returns the prediction with the ratio of both scores, which stand in `parsed` as the judge gave them."""
        found = _TWO_SCORES.match(reply)
        if found is None or float(found[1]) == 0:
            return prediction
        return with_verdict(prediction, float(found[2]) / float(found[1]), f"{found[1]} {found[2]}")

    def score(self, predictions: Sequence[Prediction]) -> dict[str, Any]:
        """Returns the sum of the answers' scores over that of the references', also by category, as the authors do.

        ``points`` holds the mean of both scores of 10, times 10, of all questions and by category.
        """
        pairs = [(question, one) for question, one in self.pairs(predictions) if one.hit is not None]
        if not pairs:
            return super().score(predictions)
        by_category: dict[str, list[str]] = defaultdict(list)
        for question, one in pairs:
            if "category" in question.groups:
                by_category[question.groups["category"]].append(one.parsed or "")
        points = {name: _points(verdicts) for name, verdicts in by_category.items()}
        whole = _points([one.parsed or "" for _, one in pairs])
        return {
            "overall": _share(whole),
            "groups": {"category": {name: _share(both) for name, both in points.items()}} if points else {},
            "points": {"all": whole, **points},
        }


def _points(verdicts: Sequence[str]) -> dict[str, float]:
    """Mean scores × 10 of reference and answer; an answer that was not judged (an empty one) gets nothing."""
    judged = [match for match in map(_TWO_SCORES.match, verdicts) if match]
    # where the answer was not judged, the reference gets its mean
    reference = sum(float(match[1]) for match in judged) / len(judged) if judged else 0.0
    return {"reference": 10 * reference, "answer": 10 * sum(float(match[2]) for match in judged) / len(verdicts)}


def _share(points: Mapping[str, float]) -> float:
    return points["answer"] / points["reference"] if points["reference"] else 0.0


def _text(caption: Any) -> str:
    """A caption as the judge reads it: some copies of the file hold a list of sentences."""
    return "\n".join(map(str, caption)) if isinstance(caption, list) else str(caption)
