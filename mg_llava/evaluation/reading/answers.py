"""Reading a model's words: option letters, yes or no, short answers. Pure functions, no guessing."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping

_ARTICLES = {"a", "an", "the"}
_LEAD = r"[\s\(\[\{\*\"'`<]*"
_TAIL = r"[\s\)\]\}\.\:,;!\*\"'`>]*"
_WHOLE_LETTER = re.compile(rf"{_LEAD}([A-Za-z]){_TAIL}")
_NAMED_LETTER = re.compile(
    # "answer: C", "the correct option is (C)", "I choose C": the letter is a word of its own
    r"\b(?:answer|option|choice|choose|pick|select)\b(?:\s+(?:is|would\s+be|letter|option))*\s*[:=\-]?"
    r"[\s\(\[\*\"']*([A-Z])(?![A-Za-z0-9'’])",
    re.IGNORECASE,
)
_LONE_LETTER = re.compile(r"(?<![A-Za-z0-9'’])([A-Z])(?![A-Za-z0-9'’])")
# "A dog" and "I think" hold words, "A.", "(A)" and "A because" an option's letter
_ARTICLE_OR_PRONOUN = re.compile(
    r"(?<![A-Za-z0-9\(\[])(?:A|I)(?=\s+(?!(?:and|as|because|but|for|from|if|is|or|since|with)\b)[a-z])"
)


def option_letter(output: str, options: Mapping[str, str]) -> str | None:
    """Returns the letter of the option that an answer chooses, or None if it names none or several.

    In order: the whole answer is a letter; a letter after "answer", "option", "choose" …; the only capital letter that
    stands alone; the only option whose text the answer holds.

    Args:
        output: the model's words.
        options: letter → text.
    """
    text = output.strip()
    whole = _WHOLE_LETTER.fullmatch(text)
    if whole:
        letter = whole.group(1).upper()
        return letter if letter in options else _by_text(text, options)
    for found in (_named_letters(text), _lone_letters(text)):
        known = found & set(options)
        if len(found) == 1 and known:
            return known.pop()
        if len(known) > 1:
            return None
    return _by_text(text, options)


def strict_option_letter(output: str) -> str | None:
    """Returns what the original reads as an option: the first run of capitals A–D, wherever it stands.

    "Answer: C" is A to it, "Definitely C" is D, "Car" is C, lower case and E–I are never found; a run of several
    letters matches no option. Only for comparing with numbers that were reported so.
    """
    found = re.search(r"[A-D]+", output)
    return found.group() if found and len(found.group()) == 1 else None


def _named_letters(text: str) -> set[str]:
    text = _ARTICLE_OR_PRONOUN.sub(" ", text)
    return {match.group(1) for match in _NAMED_LETTER.finditer(text) if match.group(1).isupper()}


def _lone_letters(text: str) -> set[str]:
    return set(_LONE_LETTER.findall(_ARTICLE_OR_PRONOUN.sub(" ", text)))


def _by_text(output: str, options: Mapping[str, str]) -> str | None:
    """The only option whose words stand in the answer; one inside a longer one that stands there does not count."""
    answer = f" {_plain(output)} "
    texts = {letter: f" {_plain(text)} " for letter, text in options.items()}
    exact = [letter for letter, text in texts.items() if text == answer and text.strip()]
    if exact:
        return exact[0] if len(exact) == 1 else None
    inside = {letter: text for letter, text in texts.items() if text.strip() and text in answer}
    longest = [
        letter
        for letter, text in inside.items()
        if not any(text in other and text != other for other in inside.values())
    ]
    return longest[0] if len(longest) == 1 else None


def _plain(text: str) -> str:
    """Lower case, punctuation at the ends of words gone, single spaces."""
    words = (word.strip(string.punctuation + "。，、？！：；") for word in text.lower().split())
    return " ".join(word for word in words if word)


def yes_or_no(output: str) -> str | None:
    """Returns "yes" or "no" where the answer holds just one of the two as a word, else None."""
    words = set(re.findall(r"[a-z]+", output.lower()))
    found = words & {"yes", "no"}
    return found.pop() if len(found) == 1 else None


def short_answer(output: str) -> str:
    """Returns the answer in lower case without articles, outer punctuation and extra spaces, for exact match.

    An answer of articles only keeps them: "A" is the letter.
    """
    words = _plain(output).split()
    return " ".join([word for word in words if word not in _ARTICLES] or words)
