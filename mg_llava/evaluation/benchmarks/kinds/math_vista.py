"""MathVista (arXiv 2310.02255): the authors' hints, the reading of numbers, lists and options, their normalisation."""

from __future__ import annotations

import json
import os
import re
import string
from collections.abc import Sequence
from typing import Any

from mg_llava.evaluation.benchmarks.base import Verdict, equal
from mg_llava.evaluation.benchmarks.files import read_json, require
from mg_llava.evaluation.benchmarks.labels import is_nothing
from mg_llava.evaluation.benchmarks.records import Prediction, Question
from mg_llava.evaluation.judging.verdicts import JudgedBenchmark, with_verdict
from mg_llava.evaluation.reading.answers import option_letter
from mg_llava.evaluation.reading.metrics import edit_distance
from mg_llava.evaluation.reading.numbers import find_numbers, read_number
from mg_llava.evaluation.reading.published import math_vista_answer
from mg_llava.evaluation.reading.text import final_part, unmarked
from xtuner.errors import XTunerError

_NEEDED = ("image", "question", "question_type", "answer_type")
_LIST = re.compile(r"\[[^\[\]]*\]")
_LETTERS = string.ascii_uppercase
_HINTS = {
    "integer": "requiring an integer answer and provide the final value, e.g., 1, 2, 3, at the end.",
    "float1": "requiring a floating-point number with one decimal place and provide the final value, e.g., 1.2, 1.3, "
    "1.4, at the end.",
    "float": "requiring a floating-point number with two decimal places and provide the final value, e.g., 1.23, 1.34, "
    "1.45, at the end.",
    "list": "requiring a Python list as an answer and provide the final list, e.g., [1, 2, 3], [1.2, 1.3, 1.4], at the "
    "end.",
}
_OPTION_HINT = "and provide the correct option letter, e.g., A, B, C, D, at the end."


class MathVista(JudgedBenchmark):
    """``testmini.json``: problems by id. Answers are read by rule where they are plain, else by a judge."""

    judge_max_tokens = 64

    def read_questions(self) -> list[Question]:
        """Reads the problems; one without its fields is named by its id."""
        problems = read_json(self.data_path)
        if not isinstance(problems, dict):
            raise XTunerError(
                f"'{self.data_path}': expected MathVista's object of problems by id, found {type(problems).__name__}."
            )
        require(((f"problem {key}", problem) for key, problem in problems.items()), _NEEDED, self.data_path)
        questions = []
        for key, problem in problems.items():
            answer = problem.get("answer")
            choices = problem.get("choices") or []
            questions.append(
                Question(
                    id=str(key),
                    text=_query(problem),
                    pictures=(self.picture(problem["image"]),),
                    box_id=str(key),
                    answer=None if is_nothing(answer) else {**problem, "answer": str(answer)},
                    options=dict(zip(_LETTERS, map(str, choices), strict=False)),
                    groups={axis: str(problem[axis]) for axis in ("question_type", "answer_type") if problem.get(axis)},
                )
            )
        return questions

    def parse(self, question: Question, output: str) -> str | None:
        """Returns the chosen option's text, the only number, or the only list of an answer; None: ask a judge."""
        if question.options:
            letter = option_letter(output, question.options)
            return question.options[letter] if letter else None
        boxed = final_part(output)
        text = unmarked(output if boxed is None else boxed)
        kind = question.groups.get("answer_type")
        if kind == "list":
            found = _LIST.findall(text)
        elif kind in ("integer", "float"):
            found = _numbers(text)
        else:
            found = [text] if text else []
        return found[0] if len(set(found)) == 1 else None

    def hit(self, question: Question, parsed: str | None) -> float | None:
        """Returns whether the answer, normalised as its type asks, is the right one."""
        if question.answer is None:
            return None
        problem = question.answer
        return float(parsed is not None and _normal(parsed, problem) == _normal(problem["answer"], problem))

    def published(self, question: Question, output: str) -> dict[str, Verdict]:
        """Returns what MathVista's script says of an answer that it reads without a judge; others count as wrong."""
        if question.answer is None:
            return {}
        read = math_vista_answer(output, question.answer, list(question.options.values()))
        return {"MathVista without a judge": equal(read, question.answer["answer"].strip())}

    def judge_prompt(self, question: Question, output: str) -> str | None:
        """Returns the request to extract the final answer, where no rule could."""
        if question.answer is None or not output.strip() or self.parse(question, output) is not None:
            return None
        return (
            "Please read the following question and the model's response, and extract only the final answer from the "
            "response: the option's letter, the number, or the Python list that the hint asks for. If the response "
            f"holds none, write None.\n\n{question.text}\n\nModel response: {output}\n\nExtracted answer:"
        )

    def read_judgement(self, question: Question, prediction: Prediction, reply: str) -> Prediction:
        """Returns the prediction with the answer that the judge extracted."""
        parsed = self.parse(question, reply)
        if parsed is None and question.options and reply.strip():
            # the authors' own rule: the option most like what was extracted
            parsed = min(question.options.values(), key=lambda option: edit_distance(reply.strip(), option))
        return prediction if parsed is None else with_verdict(prediction, self.hit(question, parsed), parsed)

    def write_files(self, folder: str, predictions: Sequence[Prediction]) -> list[str]:
        """Writes ``answers.jsonl``: every problem with what was asked and answered, for the authors' scripts."""
        path = os.path.join(folder, "answers.jsonl")
        problems = read_json(self.data_path)
        with open(path, "w", encoding="utf-8") as file:
            for question, prediction in self.pairs(predictions):
                row = {**problems[question.id], "query": [question.text], "response": [prediction.output or ""]}
                file.write(json.dumps(row) + "\n")
        return [path]


def _query(problem: dict[str, Any]) -> str:
    """The authors' prompt: hint, question with its unit, choices."""
    kind = problem["answer_type"]
    if kind == "float" and problem.get("precision") == 1:
        kind = "float1"
    options = problem["question_type"] == "multi_choice"
    hint = _OPTION_HINT if options else _HINTS.get(kind, "and provide the final answer at the end.")
    unit = f" (Unit: {problem['unit']})" if problem.get("unit") else ""
    lines = [f"Hint: Please answer the question {hint}", f"Question: {problem['question']}{unit}"]
    if problem.get("choices"):
        lines.append("Choices:")
        lines += [f"({letter}) {choice}" for letter, choice in zip(_LETTERS, problem["choices"], strict=False)]
    return "\n".join(lines)


def _normal(value: str, problem: dict[str, Any]) -> str | None:
    """An answer as the authors compare it: whole numbers, numbers of so many places, or the words."""
    kind = problem["answer_type"]
    if problem["question_type"] == "multi_choice" or kind not in ("integer", "float"):
        return "".join(value.split()) if kind == "list" else value.strip()
    number = read_number(value)
    if number is None:
        return None
    # sums such as 0.1 + 0.2 differ in the last place
    figure = round(number.value * number.scale, 9)
    # "-0.00" and "0.00" are the same
    return str(int(figure)) if kind == "integer" else f"{figure + 0.0:.{int(problem.get('precision') or 2)}f}"


def _numbers(text: str) -> list[str]:
    """The numbers of an answer as text, words ("three") only where no digits stand; a unit behind them is left out."""
    numbers = find_numbers(text)
    digits = [number for number in numbers if not number.spelled]
    return [f"{number.value * number.scale:.12g}" for number in digits or numbers]
