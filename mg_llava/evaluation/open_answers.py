"""Free answers of any length that a judge grades: MM-Vet (arXiv 2308.02490) and LLaVA-Bench-in-the-Wild."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mg_llava.evaluation.base import Prediction, Question, mean_by_groups, unique_ids
from mg_llava.evaluation.files import read_json, read_json_lines, require
from mg_llava.evaluation.judging import JudgedBenchmark, first_number, with_verdict
from xtuner.errors import XTunerError

_MM_VET_PROMPT = """\
Compare the ground truth and prediction from AI models, to give a correctness score for the prediction. <AND> in the \
ground truth means it is totally right only when all elements in the ground truth are present in the prediction, and \
<OR> means it is totally right when any one element in the ground truth is present in the prediction. The correctness \
score is 0.0 (totally wrong), 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, or 1.0 (totally right). Just complete the \
last space of the correctness score.

Question | Ground truth | Prediction | Correctness
--- | --- | --- | ---
What is x in the equation? | -1 <AND> -5 | x = 3 | 0.0
What is x in the equation? | -1 <AND> -5 | x = -1 | 0.5
What is x in the equation? | -1 <AND> -5 | x = -5 or 5 | 0.5
What is x in the equation? | -1 <AND> -5 | x = -1 or x = -5 | 1.0
"""
_LLAVA_BENCH_RULE = (
    "We would like to request your feedback on the performance of two AI assistants in response to the user question "
    "displayed above. The user asks the question on observing an image. For your reference, the visual content in the "
    "image is represented with a few sentences describing the image. Please rate the helpfulness, relevance, accuracy, "
    "level of details of their responses. Each assistant receives an overall score on a scale of 1 to 10, where a "
    "higher score indicates better overall performance. Please first output a single line containing only two values "
    "indicating the scores for Assistant 1 and 2, respectively. The two scores are separated by a space."
)
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
        rows = read_json_lines(self.data_path)
        for number, row in enumerate(rows, start=1):
            require(row, ("question_id", "image", "text"), f"'{self.data_path}' question {number}")
        known = self.read_references()
        return [
            Question(
                id=unique_id,
                text=row["text"],
                picture=self.picture(row["image"]),
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
        return {key.removeprefix("v1_"): value for key, value in known.items()}

    def groups(self, row: dict[str, Any], known: Any) -> dict[str, str]:
        """Returns the set of capabilities that the question needs."""
        return {"capabilities": "+".join(sorted(known.get("capability", ())))} if known else {}

    def judge_prompt(self, question: Question, output: str) -> str | None:
        """Returns the authors' table with a row for this answer, its score left open."""
        if question.answer is None or not output.strip():
            return None
        right = str(question.answer["answer"]).replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
        cells = [question.answer.get("question", question.text), right, output]
        return _MM_VET_PROMPT + " | ".join(str(cell).replace("\n", " ") for cell in cells) + " | "

    def read_judgement(self, question: Question, prediction: Prediction, reply: str) -> Prediction:
        """Returns the prediction with the judge's score; one outside 0–1 is not a score."""
        number = first_number(reply)
        return prediction if number is None or not 0 <= number <= 1 else with_verdict(prediction, number)

    def write_files(self, folder: str, predictions: Sequence[Prediction]) -> list[str]:
        """Writes ``upload.json``: ``{"v1_<id>": answer}`` by id."""
        answers = {question.box_id: one.output or "" for question, one in self.pairs(predictions)}
        path = os.path.join(folder, "upload.json")
        order = sorted(answers, key=lambda key: (not key.isdigit(), int(key) if key.isdigit() else 0, key))
        with open(path, "w", encoding="utf-8") as file:
            json.dump({f"v1_{key}": answers[key] for key in order}, file, indent=2)
        return [path]


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
        contexts = {str(row["image"]): str(row["caption"]) for row in read_json_lines(self.path(self.context_file))}
        answers = {str(row["question_id"]): str(row["text"]) for row in read_json_lines(self.path(self.answer_file))}
        known = {}
        for row in read_json_lines(self.data_path):
            key = str(row["question_id"])
            if key in answers:
                known[key] = {"context": contexts.get(str(row["image"]), ""), "reference": answers[key]}
        return known

    def judge_prompt(self, question: Question, output: str) -> str | None:
        """Returns context, question, both answers and the rule."""
        if question.answer is None or not output.strip():
            return None
        return (
            f"[Context]\n{question.answer['context']}\n\n[Question]\n{question.text}\n\n"
            f"[Assistant 1]\n{question.answer['reference']}\n\n[End of Assistant 1]\n\n"
            f"[Assistant 2]\n{output}\n\n[End of Assistant 2]\n\n[System]\n{_LLAVA_BENCH_RULE}\n\n"
        )

    def read_judgement(self, question: Question, prediction: Prediction, reply: str) -> Prediction:
        """Returns the prediction with the ratio of both scores, which stand in `parsed` as the judge gave them."""
        found = _TWO_SCORES.match(reply)
        if found is None or float(found[1]) == 0:
            return prediction
        return with_verdict(prediction, float(found[2]) / float(found[1]), f"{found[1]} {found[2]}")

    def score(self, predictions: Sequence[Prediction]) -> dict[str, Any]:
        """Returns the sum of the answers' scores over that of the references', as the authors do."""
        pairs = [(question, one) for question, one in self.pairs(predictions) if one.hit is not None]
        scores = mean_by_groups((question.groups, one.hit or 0.0) for question, one in pairs)
        judged = [_TWO_SCORES.match(one.parsed or "") for _, one in pairs]
        references = [float(match[1]) for match in judged if match]
        answers = [float(match[2]) for match in judged if match]
        # an empty answer was not judged: it gets nothing where the reference got its mean
        mean = sum(references) / len(references) if references else 0.0
        total = mean * len(pairs)
        return {**scores, "overall": sum(answers) / total if total else scores["overall"]}
