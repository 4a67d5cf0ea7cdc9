"""How the published scorers read answers, slips and all, to compare our scores with numbers that they gave.

Rules as VLMEvalKit (``matching_util``, ``yorn``, ``vqa_eval``), lmms-eval 0.7 (``tasks/*/utils``), POPE's, MME's and
MathVista's own scripts have them, for answers that they read without asking a judge; None is an answer that they leave
to a judge or to chance. MMMU's stand in `mmmu`.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

from mg_llava.evaluation.reading.metrics import edit_distance
from mg_llava.evaluation.reading.vqa_answers import without_punctuation

_MARKS_TO_SPACES = str.maketrans(dict.fromkeys(map(ord, ".()[],:;!*#{}"), " "))
_FORMS = ("{}", "{}.", "{},", "{}:", "{})", "{}).", "({})", "({}).", ":{}", ":{},", ":{}.", ":{})", ":{}).")
_MMBENCH_LETTERS = "ABCDE"
_QUOTED_ANSWER = re.compile(r'The answer is "(.*)"\.')
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_MME_PREFIX = 4


def mme_yes_or_no(output: str) -> str | None:
    """MME's script and lmms-eval: the whole answer, "y" or "n", else what stands in its first four letters."""
    text = output.lower().strip().replace(".", "")
    if len(text) <= 1:
        return {"y": "yes", "n": "no"}.get(text)
    for word in ("yes", "no"):
        if word in text[:_MME_PREFIX]:
            return word
    return None


def pope_yes_or_no(output: str) -> str:
    """POPE's script: "no" where the first sentence has no or not between spaces, else "yes"."""
    words = output.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def exact_yes_or_no(output: str) -> str | None:
    """lmms-eval's POPE: the whole answer, nothing else."""
    text = output.lower().strip()
    return text if text in ("yes", "no") else None


def kit_yes_or_no(output: str) -> str | None:
    """VLMEvalKit: the only one of the two words."""
    words = {"yes", "no"} & set(without_punctuation(output.lower()).split())
    return words.pop() if len(words) == 1 else None


def kit_letter(output: str, options: Mapping[str, str]) -> str | None:
    """VLMEvalKit: the only letter between spaces and marks, else the only option whose text the answer holds."""
    words = output.translate(_MARKS_TO_SPACES).split()
    found = [letter for letter in options if letter in words]
    if len(found) == 1:
        return found[0]
    if not found and "Z" in words:
        return "Z"
    if len(output) > 2 * sum(map(len, options.values())):
        return None
    return _only_text(output, options)


def lmms_mmbench_letter(output: str, options: Mapping[str, str]) -> str | None:
    """lmms-eval's MMBench: the only letter between spaces or with one of its marks, "A" only in a short answer."""
    words = output.split()
    for form in _FORMS:
        found = [letter for letter in _MMBENCH_LETTERS if form.format(letter) in words]
        if len(found) == 1 and not (form == "{}" and "A" in words and len(words) > 3):
            return found[0]
    return _only_text(output, options)


def _only_text(output: str, options: Mapping[str, str]) -> str | None:
    found = [letter for letter, text in options.items() if text.lower() in output.lower()]
    return found[0] if len(found) == 1 else None


def relaxed_correctness(output: str, answer: str) -> bool:
    """ChartQA's in Pix2Struct, VLMEvalKit and lmms-eval: "5%" is 0.05, other numbers as Python reads them."""
    number, right = _float(output), _float(answer)
    if number is not None and right:
        return abs(number - right) / abs(right) <= 0.05
    return output.lower() == answer.lower()


def _float(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def lmms_exact_match(output: str, answer: str) -> bool:
    """lmms-eval's exact match, as GQA uses it: whatever the case and the punctuation."""
    return output.lower().translate(_NO_PUNCTUATION) == answer.lower().translate(_NO_PUNCTUATION)


def math_vista_answer(output: str, problem: Mapping[str, Any], choices: Sequence[str]) -> str | None:
    """MathVista's extraction where it asks no model, and its normalisation; None where it would ask one."""
    text = output.strip()
    if problem["question_type"] == "multi_choice":
        extracted = text if text in choices else None
    else:
        extracted = _quick_number(text, problem["answer_type"])
    quoted = _QUOTED_ANSWER.search(text)
    if extracted is None and quoted:
        extracted = quoted[1]
    return None if extracted is None else math_vista_normal(extracted, problem, choices)


def _quick_number(text: str, kind: str) -> str | None:
    try:
        return str(int(text)) if kind == "integer" else str(float(text)) if kind == "float" else None
    except ValueError:
        return None


def math_vista_normal(extracted: str, problem: Mapping[str, Any], choices: Sequence[str]) -> str | None:
    """MathVista's normalisation of an extracted answer: the nearest choice, a whole number, a rounded one, the text."""
    if problem["question_type"] == "multi_choice":
        named = re.findall(r"\(([a-zA-Z])\)", extracted.strip())
        letter = named[0].upper() if named else extracted.strip()
        letters = string.ascii_uppercase[: len(choices)]
        if len(letter) == 1 and letter in letters:
            return choices[letters.index(letter)]
        return min(choices, key=lambda choice: edit_distance(letter, choice))
    try:
        if problem["answer_type"] == "integer":
            return str(int(float(extracted)))
        if problem["answer_type"] == "float":
            precision = problem.get("precision")
            return str(round(float(extracted), None if precision is None else int(precision)))
    except (ValueError, OverflowError):
        return None
    return extracted
