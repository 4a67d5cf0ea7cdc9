"""The published scorers: lmms-eval's own functions on generated answers, VLMEvalKit's rules on hand-worked ones.

lmms-eval (extra ``lmms``; ``pip install --no-deps lmms-eval`` will do) is not imported: its scoring functions are taken
out of its files, so that its other dependencies need not be there.
"""

from __future__ import annotations

import ast
import math
import random
import re
import string
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, files
from typing import Any

import numpy as np
import pytest

from mg_llava.evaluation.reading import mmmu, published
from mg_llava.evaluation.reading.metrics import edit_distance

ANSWERS = 400
OPTIONS = {"A": "a cat", "B": "dog", "C": "big dog", "D": "3.5"}
NUMBERS = (
    "8 8.0 -3 .5 0.5 1,000 1000 1e3 50% 2% 3/4 12.345 \u22125 $5 5. 0 -0.25 1,00,000 24/7 3.429 7% 100 95 105.01 nan "
    "inf"
).split()
WORDS = (
    "yes no Yes No not none cat dog big red blue hepatitis the a A B C D E x the_answer (A) (B) C. D) B: unknown"
).split()
FRAMES = (
    *("{}", "{}.", " {} ", "The answer is {}.", "Answer: {}", "{} because of {}", "So it is {}", "x = {}", "{}, {}"),
    *("Therefore {} is the final answer {}", "It could be {}.\nThus {}", "{} and {}", '"{}"', "({})", "**{}**"),
    *("I think that in the picture there is {}", "{}\n{}", "The result is {} = {}", 'The answer is "{}".', "{}!"),
)


def answer(dice: random.Random) -> str:
    frame = dice.choice(FRAMES)
    return frame.format(*(dice.choice((*NUMBERS, *WORDS, *OPTIONS.values())) for _ in range(2)))


def answers(seed: int) -> list[str]:
    dice = random.Random(seed)
    return list({answer(dice) for _ in range(2 * ANSWERS)})[:ANSWERS]


def scorers(path: str, *names: str, **given: Any) -> list[Callable[..., Any]]:
    """Functions and methods of a file of lmms-eval, without the rest of the file."""
    try:
        file = next(one for one in files("lmms-eval") or () if str(one) == f"lmms_eval/{path}")
    except (PackageNotFoundError, StopIteration):
        pytest.skip("lmms-eval is not installed: pip install -e '.[lmms]', or pip install --no-deps lmms-eval")
    tree = ast.parse(file.read_text(encoding="utf-8"))
    nodes: list[ast.stmt] = [one for one in ast.walk(tree) if isinstance(one, ast.FunctionDef) and one.name in names]
    space: dict[str, Any] = {"re": re, "math": math, "string": string, "np": np, **given}
    exec(compile(ast.Module(nodes, []), path, "exec"), space)
    return [space[name] for name in names]


class TestLmmsEval:
    def test_mmmu_open_answers(self) -> None:
        names = ("parse_open_response", "eval_open", "extract_numbers", "check_is_number", "normalize_str")
        parse, evaluate, *_ = scorers("tasks/mmmu/utils.py", *names)
        rights: list[list[str]] = [
            ["8"],
            ["-3", "0.5"],
            ["24/7", "3.429"],
            ["hepatitis"],
            ["a"],
            ["1,000"],
            ["no", "50%"],
        ]
        hits = 0
        for text in answers(0):
            for right in rights:
                expected = evaluate(right, parse(text))
                assert mmmu.official_open_answer_is_right(text, right) is expected, (text, right)
                hits += expected
        assert hits > ANSWERS / 10

    def test_mmmu_letters(self) -> None:
        by_lot = object()

        class Dice:
            @staticmethod
            def choice(_: object) -> object:
                return by_lot

        (parse,) = scorers("tasks/_task_utils/mmmu_mcq_utils.py", "parse_mmmu_multi_choice_response", random=Dice)
        read = 0
        for text in answers(1):
            expected = parse(text, list(OPTIONS), OPTIONS)
            found = mmmu.official_letter(text, OPTIONS)
            assert found == (None if expected is by_lot else expected), text
            read += found is not None
        assert read > ANSWERS / 8

    def test_chartqa(self) -> None:
        (relaxed,) = scorers("tasks/chartqa/utils.py", "relaxed_correctness")
        for text in answers(2):
            for right in (*NUMBERS, "Blue", "yes"):
                assert published.relaxed_correctness(text, right) is bool(relaxed(text, right)), (text, right)

    def test_mme(self) -> None:
        (parse,) = scorers("tasks/mme/utils.py", "parse_pred_ans")
        for text in (*answers(3), "", "y", "N", "n.", "nothing", "Yess", "oyes"):
            assert (published.mme_yes_or_no(text) or "other") == parse(text), text

    def test_pope(self) -> None:
        (process,) = scorers("tasks/pope/utils.py", "pope_process_results")
        for text in (*answers(4), "yes", "NO ", "yes."):
            for right in ("yes", "no"):
                expected = process({"answer": right, "question_id": 1}, [text])["pope_accuracy"]["score"]
                assert float(published.exact_yes_or_no(text) == right) == expected, (text, right)

    def test_mmbench(self) -> None:
        option, by_text = scorers(
            "tasks/mmbench/mmbench_evals.py", "can_infer_option", "can_infer_text", eval_logger=_Silent()
        )
        for text in answers(5):
            expected = option(None, text) or by_text(None, text, dict(OPTIONS)) or None
            assert published.lmms_mmbench_letter(text, OPTIONS) == expected, text

    @pytest.mark.parametrize(
        ("question_type", "answer_type", "precision"),
        [
            ("multi_choice", "text", None),
            ("free_form", "integer", None),
            ("free_form", "float", 2),
            ("free_form", "float", 1),
        ],
    )
    def test_math_vista(self, question_type: str, answer_type: str, precision: int | None) -> None:
        names = ("extract_answer", "normalize_extracted_answer", "get_most_similar")
        extract, normalise, similar = scorers(
            "tasks/mathvista/mathvista_evals.py", *names, distance=edit_distance, eval_logger=_Silent()
        )

        class Evaluator:
            def get_most_similar(self, prediction: str, choices: list[str]) -> str:
                return str(similar(self, prediction, choices))

            def create_test_prompt(self, *_: object) -> str:
                return ""

            def get_chat_response(self, *_: object, **__: object) -> None:
                return None

        problem = {"question_type": question_type, "answer_type": answer_type, "query": "", "precision": precision}
        choices = list(OPTIONS.values())
        read = 0
        for text in (*answers(6), *NUMBERS, *choices):
            extracted = extract(Evaluator(), text.strip(), {**problem, "choices": choices}, quick_extract=True)
            expected = extracted and normalise(Evaluator(), extracted, choices, question_type, answer_type, precision)
            assert published.math_vista_answer(text, problem, choices) == (expected or None), text
            read += expected is not None
        assert read > 10

    def test_gqa(self) -> None:
        (match,) = scorers("api/metrics.py", "exact_match_hf_evaluate")
        for text in answers(7):
            for right in ("cat", "yes", "big dog", "a_cat", "The"):
                expected = match([text], [right], ignore_case=True, ignore_punctuation=True)["exact_match"]
                assert published.lmms_exact_match(text, right) == bool(expected), (text, right)


class _Silent:
    def info(self, *_: object) -> None:
        """Logs nothing."""

    error = info


class TestVLMEvalKit:
    """Worked out by hand from its rules."""

    @pytest.mark.parametrize(
        ("output", "letter"),
        [
            *(("B", "B"), ("B.", "B"), ("(B) dog", "B"), ("Answer: C", "C"), ("**D**", "D"), ("A cat", "A")),
            *(("A or B", None), ("It is B, not A", None), ("b", None), ("E", None), ("B-C", None)),
            # no letter: the only option whose text stands in the answer
            *(("The price is 3.5", "D"), ("a cat", "A"), ("It is a dog", "B"), ("a big dog", None), ("Because", None)),
            *(("Z", "Z"), ("I see " + "very " * 20 + "a cat", None)),
        ],
    )
    def test_letters(self, output: str, letter: str | None) -> None:
        assert published.kit_letter(output, OPTIONS) == letter

    @pytest.mark.parametrize(
        ("output", "expected"),
        [
            *(("Yes", "yes"), ("No.", "no"), ("yes, it is", "yes"), ("There is no dog", "no"), ("not", None)),
            *(("yes/no", None), ("Yes, no", None), ("yes-no", None), ("Yes, and there is no other", None), ("", None)),
        ],
    )
    def test_yes_or_no(self, output: str, expected: str | None) -> None:
        assert published.kit_yes_or_no(output) == expected


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        *(("Yes", "yes"), ("No", "no"), ("There is not", "no"), ("Yes. No", "yes"), ("No, it is", "no")),
        *(("NO", "yes"), ("No!", "yes"), ("None", "yes"), ("", "yes"), ("Yes, it is not red", "no")),
    ],
)
def test_pope_by_its_own_script(output: str, expected: str) -> None:
    assert published.pope_yes_or_no(output) == expected
