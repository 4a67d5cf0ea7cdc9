"""Reading a model's words: option letters, yes or no, short answers. Pure functions, no guessing."""

from __future__ import annotations

import re

from mg_llava.evaluation.reading.numbers import read_number, same_number
from mg_llava.evaluation.reading.options import option_letter
from mg_llava.evaluation.reading.text import final_part, half_width, plain, unmarked

__all__ = ["option_letter", "same_short_answer", "short_answer", "strict_option_letter", "yes_no_label", "yes_or_no"]

_ARTICLES = {"a", "an", "the"}
_BEGINS = re.compile(
    r"[\s\"'“”‘’(\[{*<>:,.-]*(?:(?:the\s+|my\s+|final\s+)*answer\s*(?:is|:)*\s*[\"'“‘(\[]*)?(yes|no)\b(?!\s*[/-])"
)
_EITHER = re.compile(r"(?:yes|no)[\s,]*(?:or|and|/)?[\s,]*(?:yes|no)\b")
_CHINESE_YES = re.compile(
    r"\s*(?:答案(?:是|为)?[：:\s]*)?(?:不是|没有|不|否|没|无|错)|(?P<yes>\s*(?:答案(?:是|为)?[：:\s]*)?(?:是|对|有|正确))"
)
_STATED = re.compile(r"\banswer(?:\s+is|\s*:)\s*[\"'“‘(\[]*(yes|no)\b(?!\s*[/-])")
_YES = frozenset(("yes", "y", "true", "t", "1", "1.0", "是", "对", "正确"))
_NO = frozenset(("no", "n", "false", "f", "0", "0.0", "否", "不", "不是", "错", "错误"))


def strict_option_letter(output: str) -> str | None:
    """Returns what the original reads as an option: the first run of capitals A–D, wherever it stands.

    "Answer: C" is A to it, "Definitely C" is D, "Car" is C, lower case and E–I are never found; a run of several
    letters matches no option. Only for comparing with numbers that were reported so.
    """
    found = re.search(r"[A-D]+", output)
    return found.group() if found and len(found.group()) == 1 else None


def yes_or_no(output: str) -> str | None:
    """Returns "yes" or "no": the word that the answer begins with or states, else the only one that it holds, or None.

    "Yes, and there is no other one" is yes; "yes/no" and "Yes, no" choose neither.
    """
    boxed = final_part(half_width(output))
    text = unmarked(output if boxed is None else boxed).lower()
    words = re.findall(r"[a-z]+", text)
    found = set(words) & {"yes", "no"}
    if len(found) == 1:
        return found.pop()
    if not found:
        chinese = _CHINESE_YES.match(text)
        return None if chinese is None else "no" if chinese["yes"] is None else "yes"
    if not set(words) - {"yes", "no", "or", "and", "either", "neither"}:
        # both, and nothing besides
        return None
    begun = leading_yes_or_no(text)
    if begun:
        return begun
    stated = _STATED.findall(text)
    return stated[-1] if stated else None


def leading_yes_or_no(output: str) -> str | None:
    """Returns the "yes" or "no" that an answer begins with, or None; "yes or no" and "yes/no" are neither."""
    text = unmarked(output).lower()
    match = _BEGINS.match(text)
    return None if match is None or _EITHER.match(text, match.start(1)) else match[1]


def yes_no_label(value: object) -> str | None:
    """Returns "yes" or "no" for a file's label in a usual writing (Yes., y, true, 1, 是), None if it is neither."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    label = half_width(str(value)).strip().strip(".。!\"'").strip().lower()
    return "yes" if label in _YES else "no" if label in _NO else None


def short_answer(output: str) -> str:
    """Returns the answer in lower case without articles, outer punctuation and extra spaces, for exact match.

    An answer of articles only keeps them: "A" is the letter. "-3", ".5", "c#" and "50%" keep their marks.
    """
    words = plain(output).split()
    return " ".join([word for word in words if word not in _ARTICLES] or words)


def same_short_answer(output: str, right: str) -> bool:
    """Returns whether two answers are the same words, or the same number: "1,000" is 1000, "three" 3, ".5" 0.5.

    Percent sign and currency must agree: "50%" is not 50.
    """
    if short_answer(output) == short_answer(right):
        return True
    one, other = read_number(output), read_number(right)
    if (
        one is None
        or other is None
        or (one.percent, one.currency, one.unit)
        != (
            other.percent,
            other.currency,
            other.unit,
        )
    ):
        return False
    return same_number(one, other)
