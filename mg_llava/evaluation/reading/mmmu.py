"""MMMU's own reading of open answers and option letters (arXiv 2311.16502, the authors' eval_utils), and ours of it.

The authors' rule: of each sentence the words behind the last of "is", "so", "thus", "answer", … (in the last sentence
also "="), with every number in them; numbers as floats of two places, words in lower case; an answer is right if a
number of it is a right number, or a right text stands in one of its texts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence

from mg_llava.evaluation.reading.numbers import find_numbers, read_number
from mg_llava.evaluation.reading.text import final_part, half_width, plain, unmarked

_KEYS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_PLACES = 2
_TRIVIAL = frozenset(":,.!?;'")
_STATEMENT = re.compile(r"\b(?:answer|result)\b\s*(?:\b(?:is|are|was|would be|equals?)\b|[:=])+\s*:?|=", re.IGNORECASE)
_KEY_WORD = re.compile(r"\b(?:could be|so|is|are|thus|therefore|final|answer|result|equals?)\b[:,]?", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<!\b[A-Z])[.。!?](?=\s+\S)|\n")
_OFFICIAL_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)


def open_answer_is_right(output: str, answers: Sequence[str]) -> bool:
    """Returns whether an open answer is one of the right ones, by MMMU's rule without its slips.

    Where the authors find a text anywhere in another ("no" in "unknown"), ours wants it as words; numbers have their
    sign and point as `numbers.find_numbers` reads them ("−3", ".5"), and of several only those behind the last
    "answer is" or "=" count.

    Args:
        output: the model's words.
        answers: right answers; numbers among them are compared to two places.
    """
    candidates = open_candidates(output)
    words = [f" {plain(text)} " for text in candidates]
    found = [number for text in candidates for number in find_numbers(text)]
    # "one" is a number only where no digits stand: "5, the only one"
    digits = [number for number in found if not number.spelled]
    numbers = {_two_places(number.value) for number in digits or found}
    for answer in answers:
        number = read_number(answer)
        if number is not None:
            if _two_places(number.value) in numbers:
                return True
        elif (right := plain(answer)) and any(f" {right} " in text for text in words):
            return True
    return False


def open_candidates(output: str) -> list[str]:
    r"""Returns the parts of an answer that may hold what it answers.

    ``\boxed{…}``, else what stands behind the last "answer is" or "=", else behind "is", "so", "thus", … of each
    sentence, else all of it.
    """
    boxed = final_part(half_width(output))
    text = unmarked(output if boxed is None else boxed)
    if boxed is not None:
        return [text]
    sentences = [part.strip() for part in _SENTENCE_END.split(text) if part.strip()]
    stated = [part for sentence in sentences if (part := _behind(_STATEMENT, sentence))]
    if stated:
        return stated[-1:]
    keyed = [part for sentence in sentences if (part := _behind(_KEY_WORD, sentence))]
    return keyed or [text]


def _behind(key: re.Pattern[str], sentence: str) -> str:
    ends = [match.end() for match in key.finditer(sentence)]
    rest = sentence[ends[-1] :].strip() if ends else ""
    return "" if rest in _TRIVIAL else rest


def _two_places(value: float) -> float:
    return round(value, _PLACES)


def official_open_answer_is_right(output: str, answers: Sequence[str]) -> bool:
    """Returns what the authors' script says of an open answer, slips and all."""
    right = [one for answer in answers for one in _official_normal(answer)]
    for candidate in _official_candidates(output):
        if isinstance(candidate, str):
            if any(isinstance(one, str) and one in candidate for one in right):
                return True
        elif candidate in right:
            return True
    return False


def _official_candidates(output: str) -> list[str | float]:
    # lower case comes first there, so that no capital follows a full stop and only lines are told apart
    text = output.strip().strip(".").lower()
    lines = text.split("\n")
    keys: list[str] = []
    for number, line in enumerate(lines, start=1):
        marks = (*_KEYS, "=") if number == len(lines) else _KEYS
        tails = [line.split(mark)[-1].strip() for mark in marks if mark in line]
        # the shortest; an empty one gives way to the next
        shortest = ""
        for tail in tails:
            if not shortest or len(tail) < len(shortest):
                shortest = tail
        if shortest and shortest not in _TRIVIAL:
            keys.append(shortest)
    texts = keys or [text]
    found = [number for one in texts for pattern in _OFFICIAL_NUMBERS for number in pattern.findall(one)]
    return [one for part in (*texts, *found) for one in _official_normal(part)]


def _official_normal(text: str) -> list[str] | list[float]:
    text = text.strip()
    try:
        value = float(text.replace(",", ""))
    except ValueError:
        lower = text.lower()
        return [f" {lower}", f"{lower} "] if len(lower) == 1 else [lower]
    return [value if math.isinf(value) else round(value, _PLACES)]


def official_letter(output: str, options: Mapping[str, str]) -> str | None:
    """Returns the letter that the authors' script reads: the last of those in brackets, else alone, else with a point,
    else (in more than five words) the option whose text stands there last; None where it draws one by lot.
    """
    text = output
    for mark in ",.!?;:'":
        text = text.strip(mark)
    text = f" {text} "
    for form, place in (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} ")):
        found = [letter for letter in options if form.format(letter) in text]
        if found:
            return _last(found, (text.rfind(place.format(letter)) for letter in found))
    if len(text.split()) > 5:
        lower = text.lower()
        found = [letter for letter, option in options.items() if option.lower() in lower]
        if found:
            return _last(found, (lower.rfind(options[letter].lower()) for letter in found))
    return None


def _last(letters: Sequence[str], places: Iterable[int]) -> str:
    at = list(places)
    return letters[at.index(max(at))]
