"""The one reader of numbers: how people and models write them, and when two of them are the same."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from mg_llava.evaluation.reading.text import ascii_minus, half_width

_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_WORD_VALUES = {word: value for value, word in enumerate(_WORDS)} | {
    word: 10 * value for value, word in enumerate(_TENS, start=2)
}
_SCALES = {"hundred": 1e2, "thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}
_SHORT_SCALES = {"k": 1e3, "K": 1e3, "M": 1e6, "mn": 1e6, "bn": 1e9, "B": 1e9, "T": 1e12}
_VULGAR = {
    **{"½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅖": "2/5", "⅗": "3/5", "⅘": "4/5"},
    **{"⅙": "1/6", "⅚": "5/6", "⅛": "1/8", "⅜": "3/8", "⅝": "5/8", "⅞": "7/8", "⅐": "1/7", "⅑": "1/9", "⅒": "1/10"},
}
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_CURRENCY = r"(?:US\$|[$€£¥₹₩]|\b(?:USD|EUR|GBP|CNY|RMB|JPY|INR)\b)"
_CURRENCY_NAMES = {
    **{"us$": "$", "usd": "$", "dollar": "$", "eur": "€", "euro": "€", "gbp": "£", "pound": "£"},
    **{"cny": "¥", "rmb": "¥", "yuan": "¥", "jpy": "¥", "yen": "¥", "inr": "₹", "rupee": "₹", "won": "₩"},
}
_DIGITS = r"(?:\d{1,3}(?:,\d{2,3})*,\d{3}(?![,\d])|\d+)"
_CORE = rf"(?:{_DIGITS}(?:\.\d+)?|\.\d+)"
_POWER = r"(?:[eE][+-]?\d+|\s?[*x]\s?10\s?(?:\^|\*\*)\s?\{?\s?[+-]?\d+\s?\}?|(?:\^|\*\*)\{?[+-]?\d{1,3}\}?)"
_NUMBER = re.compile(
    rf"(?<![A-Za-z0-9_.,/^])(?P<before>{_CURRENCY}\s?)?(?P<sign>[-+]|(?i:minus|negative)\s)?"
    rf"(?P<currency>{_CURRENCY}\s?)?(?:(?P<whole>\d+)\s(?=\d+/\d))?(?P<core>{_CORE})(?P<power>{_POWER})?"
    rf"(?:\s?/\s?(?P<below>{_CORE}))?(?![.,]?\d)(?!/\s?\d)"
    r"(?:(?P<percent>\s?(?:%|percent\b|per cent\b|pct\b))"
    r"|(?P<scale>\s?(?:hundred|thousand|million|billion|trillion)s?\b|(?:k|K|M|mn|bn|B|T)\b))?(?P<unit>\s?(?:°\s?[CF]?|[^\W\d_]+(?:[²³]|\^[23])?(?:/[^\W\d_]+[²³]?)?|[$€£¥₹₩]))?"
)
_WORD_NUMBER = re.compile(
    r"(?<![\w-])(?P<sign>(?:minus|negative)\s)?(?P<tens>" + "|".join(_TENS[1:] + ["twenty"]) + r")?"
    r"(?:(?<=y)[-\s]?(?=\w))?(?P<word>" + "|".join(sorted(_WORDS, key=len, reverse=True)) + r")?"
    r"(?P<percent>\s(?:%|percent|per cent))?(?P<scale>\s(?:hundred|thousand|million|billion|trillion))?(?![\w-])",
    re.IGNORECASE,
)
_ORDINAL = re.compile(r"st|nd|rd|th")
_NO_UNIT = frozenset(
    "a an and are as at but by for from has have if in into is it no not of on or out per so than that the then there "
    "this to was were when which while with x".split()
)
_ENDS = " \t\r\n.,;:!?\"'`*“”‘’()[]{}<>。，、？！：；~≈="


@dataclass(frozen=True)
class Number:
    """A number as somebody wrote it.

    Attributes:
        value: with its sign, fraction and power; 50 for "50%", 5.2 for "5.2 million".
        percent: whether it is a percentage.
        scale: 1e6 for "5.2 million", else 1.
        currency: its sign, or "".
        unit: the word behind it, lower case and singular, or "".
        spelled: whether it was a word ("three").
        start, end: where it stands in the text as `written` gives it.
    """

    value: float
    percent: bool = False
    scale: float = 1.0
    currency: str = ""
    unit: str = ""
    spelled: bool = False
    start: int = 0
    end: int = 0

    @property
    def share(self) -> float:
        """The value with percent and scale: 0.5 for "50%", 5.2e6 for "5.2 million"."""
        return self.value * self.scale / (100 if self.percent else 1)


def written(text: str) -> str:
    r"""Returns the text with one spelling of each mark: minus, fractions, powers, LaTeX, spaces in thousands."""
    text = half_width(text)
    text = re.sub(r"\\d?t?frac\s*\{([^{}]+)\}\s*\{([^{}]+)\}", r"\1/\2", text)
    text = re.sub(r"\\(?:times|cdot)\s?|(?<=\d)\s?[×·]\s?(?=10)", "*", text)
    text = re.sub(r"\\text\s*\{([^{}]*)\}", r" \1", text).replace("{,}", ",")
    text = re.sub(r"\\[,;! ]", "", text).replace("\\%", "%").replace("\\$", "$")
    text = re.sub("[⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+", _power_of, text)
    for mark, fraction in _VULGAR.items():
        text = re.sub(rf"(?<=\d)\s?{mark}", f" {fraction}", text).replace(mark, fraction)
    text = re.sub("(?<=\\d)[\u00a0\u202f\u2009](?=\\d{3}(?!\\d))", ",", text.replace("\u2044", "/"))
    text = re.sub(r"(?<=\d)['’](?=\d{3}(?!\d))", ",", text)
    text = ascii_minus(re.sub("\u2212\\s*(?=[\\d.$€£¥])", "\u2212", text))
    return re.sub(r"(?<=\d)(?:[^\S\n]*[\u2013\u2014])(?=\s*\.?\d)", " - ", text)


def _power_of(match: re.Match[str]) -> str:
    before = match.string[match.start() - 1 : match.start()]
    return f"^{match[0].translate(_SUPERSCRIPTS)}" if before.isdigit() else match[0]


def find_numbers(text: str, spelled: bool = True) -> list[Number]:
    """Returns the numbers of a text in their order.

    "10-12" is 10 and 12, "x2", "2nd", "1.2.3" and "3/4/2020" are none.

    Args:
        text: any.
        spelled: read "three" as well, where it is no part of a longer word.
    """
    text = written(text)
    found = [number for match in _NUMBER.finditer(text) if (number := _number(match, text)) is not None]
    if spelled:
        found += _spelled(text)
    return sorted(found, key=lambda number: number.start)


def read_number(text: str) -> Number | None:
    """Returns the number that a text consists of, with its currency, percent sign or unit; None if it is more."""
    text = written(text).strip(_ENDS.replace(".", "")).rstrip(".").rstrip(_ENDS)
    found = find_numbers(text)
    if len(found) != 1 or found[0].start > 0 or found[0].end < len(text):
        return None
    return found[0]


def same_number(one: Number, right: Number, tolerance: float = 0.0) -> bool:
    """Returns whether two numbers are the same, whatever of percent sign, unit and scale one of them leaves out.

    "2%" is 2 and 0.02, but not "2 km" where the other says "2 m"; "5.2 million" is 5.2 and 5,200,000.

    Args:
        one: any.
        right: the one that is right.
        tolerance: share of the right number that the other may be off.
    """
    if one.currency and right.currency and one.currency != right.currency:
        return False
    if one.unit and right.unit and one.unit != right.unit:
        return False
    if one.percent == right.percent and (one.scale == 1) == (right.scale == 1):
        return _near(one.share, right.share, tolerance)
    return any(_near(first, second, tolerance) for first in _readings(one) for second in _readings(right))


def _readings(number: Number) -> tuple[float, float]:
    return (number.value, number.share)


def _near(one: float, right: float, tolerance: float) -> bool:
    # sums such as 0.1 + 0.2 differ in the last place
    return abs(one - right) <= tolerance * abs(right) + 1e-9 * max(abs(right), abs(one))


def _number(match: re.Match[str], text: str) -> Number | None:
    unit = match["unit"] or ""
    below = _plain_value(match["below"] or "1")
    if _ORDINAL.fullmatch(unit) or below == 0:
        return None
    value = _raised(_plain_value(match["core"]), match["power"]) / below + float(match["whole"] or 0)
    if not math.isfinite(value):
        return None
    start, end = match.start(), match.end()
    if match["sign"] == "-" and _is_between(text[:start]):
        start += 1
    elif match["sign"] and match["sign"] != "+":
        value = -value
    word, currency = _unit(unit)
    if unit and not word and not currency:
        end -= len(unit)
    before = (match["before"] or match["currency"] or "").strip().lower()
    name = (match["scale"] or "").strip()
    factor, scale = _factor_and_scale(_SHORT_SCALES.get(name) or _SCALES.get(name.removesuffix("s"), 1.0))
    return Number(
        value=value * factor,
        percent=match["percent"] is not None,
        scale=scale,
        currency=_CURRENCY_NAMES.get(before, before) or currency,
        unit=word,
        start=start,
        end=end,
    )


def _is_between(before: str) -> bool:
    """Whether a dash behind these words is a range's or a subtraction's, not a sign."""
    return re.search(r"(?:[\w)\]%]|[\d)\]%]\s)$", before) is not None


def _plain_value(digits: str) -> float:
    return float(digits.replace(",", ""))


def _raised(value: float, power: str | None) -> float:
    if power is None:
        return value
    exponent = int(re.search(r"[+-]?\d+\s?\}?$", power)[0].strip("} "))  # type: ignore[index]  # its form is checked
    try:
        if power[0] in "eE" or "10" in re.sub(r"[\^*]\{?.*$", "", power.lstrip(" *x")):
            return value * 10.0**exponent
        return value**exponent
    except (OverflowError, ZeroDivisionError):
        return math.inf


def _unit(unit: str) -> tuple[str, str]:
    """The unit as it is compared, and the currency that it is; both empty where the word is no unit."""
    word = unit.strip().lower()
    singular = word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
    if not word or word in _NO_UNIT:
        return "", ""
    if word in "$€£¥₹₩":
        return "", word
    return ("", _CURRENCY_NAMES[singular]) if singular in _CURRENCY_NAMES else (singular, "")


def _spelled(text: str) -> Iterator[Number]:
    for match in _WORD_NUMBER.finditer(text):
        tens, word = (match["tens"] or "").lower(), (match["word"] or "").lower()
        if not tens and not word:
            continue
        value = float(_WORD_VALUES.get(tens, 0) + _WORD_VALUES.get(word, 0))
        factor, scale = _factor_and_scale(_SCALES.get((match["scale"] or "").strip().lower(), 1.0))
        yield Number(
            value=value * factor * (-1 if match["sign"] else 1),
            percent=match["percent"] is not None,
            scale=scale,
            spelled=True,
            start=match.start(),
            end=match.end(),
        )


def _factor_and_scale(scale: float) -> tuple[float, float]:
    """Hundreds belong to the number; thousands and more are what tables and charts leave out."""
    return (scale, 1.0) if scale < _SCALES["thousand"] else (1.0, scale)
