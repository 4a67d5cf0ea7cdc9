"""What stands between a model's words and their sense: full-width letters, markup, LaTeX, punctuation."""

from __future__ import annotations

import re

_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: " "}
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")
_LATEX_TEXT = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|mathsf|operatorname|rm|bf)\s*\{([^{}]*)\}")
_ANSWER_TAG = re.compile(r"<answer>\s*(.*?)\s*</answer>", re.IGNORECASE | re.DOTALL)
_MARKUP = re.compile(
    r"\*{1,3}|`+|(?<![A-Za-z0-9])_{1,3}(?=\S)|(?<=\S)_{1,3}(?![A-Za-z0-9])|\$+(?=[^0-9.]|$)|\\[()\[\]]"
)
_MINUS = re.compile("[\u2212\ufe63]")
_DASH_BEFORE_NUMBER = re.compile(r"(?<![^\s(\[{=:~,$€£¥])[\u2010\u2011\u2012\u2013](?=\.?\d)")
_ENDS = "\"'`“”‘’«»()[]{}<>,;:!?。，、？！：；「」『』【】《》…"


def half_width(text: str) -> str:
    """Returns the text with full-width letters, digits and marks as ASCII: ``（Ｂ）`` is ``(B)``."""
    return text.translate(_FULL_WIDTH)


def ascii_minus(text: str) -> str:
    """Returns the text with U+2212 as ``-``, and with the dashes that stand for a sign, not for a range."""
    return _DASH_BEFORE_NUMBER.sub("-", _MINUS.sub("-", text))


def unmarked(text: str) -> str:
    r"""Returns the text without bold, code and mathematics marks: ``**B**``, ``$\text{B}$`` are ``B``."""
    text = half_width(text)
    while (bare := _LATEX_TEXT.sub(r"\1", text)) != text:
        text = bare
    return _MARKUP.sub("", text).strip()


def final_part(text: str) -> str | None:
    r"""Returns what an answer marks as final: the last ``\boxed{…}``, else the last ``<answer>…</answer>``, or None."""
    starts = list(_BOXED.finditer(text))
    if starts:
        return _until_brace_closes(text[starts[-1].end() :])
    tagged = _ANSWER_TAG.findall(text)
    return tagged[-1] if tagged else None


def _until_brace_closes(text: str) -> str:
    depth = 1
    for place, letter in enumerate(text):
        depth += (letter == "{") - (letter == "}")
        if depth == 0:
            return text[:place]
    return text


def plain(text: str) -> str:
    """Returns the text in lower case with single spaces, without the punctuation at the ends of words.

    What gives a word its sense stays: the sign of ``-3``, the point of ``.5``, ``c#``, ``c++``, ``50%``, ``$5``.
    """
    words = (_bare(word) for word in ascii_minus(half_width(text)).lower().split())
    return " ".join(word for word in words if word)


def _bare(word: str) -> str:
    before = ""
    while before != word:
        before = word
        word = word.strip(_ENDS).rstrip(".")
        if not re.match(r"[-+]?\.\d|[-+]\d", word):
            word = word.lstrip(".")
        if not re.search(r"\w", word):
            # marks alone are no word, those of a formula or a currency are
            word = word.strip("-–—_*/\\|~^&@=")
        else:
            word = _without_outer_marks(word)
    return word


def _without_outer_marks(word: str) -> str:
    if not re.match(r"[-+][.\d$€£¥]", word):
        word = word.lstrip("-–—_*/\\|~^&@=")
    return word.rstrip("-–—_*/\\|~^&@=")
