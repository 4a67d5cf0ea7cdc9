"""Which option of a multiple-choice question an answer chooses, whatever stands around the choice."""

from __future__ import annotations

import re
from collections.abc import Mapping

from mg_llava.evaluation.reading.numbers import find_numbers, read_number, same_number
from mg_llava.evaluation.reading.text import final_part, half_width, plain, unmarked

_LEAD = r"[\s\(\[\{\*\"'`<【「『《]*"
_TAIL = r"[\s\)\]\}\.\:,;!\*\"'`>。，、：；！】」』》]*"
_WHOLE_LETTER = re.compile(rf"{_LEAD}([A-Za-z]){_TAIL}")
_NO_WORD_BEFORE = r"(?<![A-Za-z0-9#+&/\-])(?<![A-Za-z0-9]['’])"
_NO_WORD_AFTER = r"(?![A-Za-z0-9#+&/]|['’][A-Za-z]|-\w|\.\w)"
_LETTER = rf"[\s\(\[\{{\*\"'【「『《<]*([A-Z]){_NO_WORD_AFTER}"
_BRACKETED_LOWER = r"[\s\*\"']*[\(\[]\s*([a-z])\s*[\)\]]"
_IS = r"(?:\s*(?:is|are|(?:would|should|must|will)\s+be|letter|option|choice|answer|therefore|thus|clearly|:|=))*"
# such as "the answer is (C)", "Answer: C", "I choose C", "the correct option is C" and their Chinese
_STATED = re.compile(
    r"(?:(?i:\b(?:answer|solution)\b(?:\s+(?:to|of|for)\s+(?:the|this)\s+\w+)?"
    rf"{_IS}\s*[:=\-]?"
    rf"|\b(?:correct|right|best|final|most\s+\w+)\s+(?:option|choice|letter)\b{_IS}\s*[:=\-]?"
    r"|\b(?:choose|chose|pick|select|go\s+with|opt\s+for)\b(?:\s+(?:option|choice|letter|answer))?\s*[:=\-]?)"
    r"|(?:答案|正确选项|正确的选项|选项应为|应选|应该选|故选|选择|选)(?:应该|应当|应|就|选项|的|为|是|选|择|：|:|\s)*)"
    rf"(?:{_LETTER}|{_BRACKETED_LOWER})"
)
_OPTION_LETTER = re.compile(rf"(?:(?i:\b(?:option|choice)\b)\s*[:=\-]?|选项\s*[：:]?)(?:{_LETTER})")
_NEGATED = re.compile(
    rf"(?i:\b(?:not|never|neither|nor|except|cannot\s+be)\b|n['’]t\b|不是|不选|并非)(?:\s+be)?{_LETTER}"
)
_OTHER_FOLLOWS = re.compile(r"[\s\)\]\"'*,]*(?:\bor\b|\band\b|和|或|、|,|/|&)[\s\(\[\"'*]*([A-Z])(?![A-Za-z0-9'’])")
_LEADING = re.compile(
    rf"{_LEAD}([A-Z])(?:\s*[\)\]\}}\.:,;】」』》。，、：；]+|\s*(?:\r?\n)|\s+[-–—]\s|\s+because\b|\s+as\b|\s+since\b)"
)
_LEADING_BRACKET = re.compile(r"\s*[\(\[]\s*([A-Za-z])\s*[\)\]]")
_ENUMERATED = re.compile(r"(?:^|[\s\(\[])([A-Z])\s*[\)\]\.:]\s*\S")
_LONE_LETTER = re.compile(rf"{_NO_WORD_BEFORE}([A-Z]){_NO_WORD_AFTER}")
_CHINESE = re.compile(r"[\u3400-\u9fff]")
# "A dog" and "I think" hold words, "A.", "(A)" and "A because" an option's letter
_ARTICLE_OR_PRONOUN = re.compile(
    r"(?<![A-Za-z0-9\(\[])(?:A|I)(?=\s+(?!(?:and|as|because|but|for|from|if|is|or|since|with)\b)[a-z])"
)


def option_letter(output: str, options: Mapping[str, str]) -> str | None:
    r"""Returns the letter of the option that an answer chooses, or None if it names none or several.

    The first of these that applies: ``\boxed{…}`` or ``<answer>``; the whole answer, or its first line, is a letter;
    what the last "answer is …", "I choose …" says; a letter that the answer begins with ("B. A is wrong because …");
    the only letter behind "option"; the only capital letter that stands alone; the only option whose text, or number,
    the answer holds.

    Args:
        output: the model's words.
        options: letter → text.
    """
    boxed = final_part(half_width(output))
    if boxed is not None:
        return _read(unmarked(boxed), options)
    return _read(unmarked(output), options)


def _read(text: str, options: Mapping[str, str]) -> str | None:
    verbatim = len(text) > 1 and text in (option.strip() for option in options.values())
    if text and not verbatim:
        for rule in (_whole, _first_line, _stated, _leading, _named, _alone):
            read, letter = rule(text, options)
            if read:
                return letter
    return _by_text(text, options) or _by_number(text, options)


Reading = tuple[bool, "str | None"]
"""Whether a rule applies, and the letter that it reads."""


def _whole(text: str, options: Mapping[str, str]) -> Reading:
    whole = _WHOLE_LETTER.fullmatch(text)
    if not whole:
        return False, None
    letter = whole[1].upper()
    return True, letter if letter in options else _by_text(text, options)


def _first_line(text: str, options: Mapping[str, str]) -> Reading:
    """A letter alone on the first line, reasons below; also on the last, reasons above."""
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) < 2:
        return False, None
    for line in (lines[0], lines[-1]):
        whole = _WHOLE_LETTER.fullmatch(line)
        if whole and whole[1].upper() in options:
            return True, whole[1].upper()
    return False, None


def _stated(text: str, options: Mapping[str, str]) -> Reading:
    """The last statement of an answer; one that names a second letter, "A or B", says nothing."""
    text = _ARTICLE_OR_PRONOUN.sub(" ", text)
    found = []
    for match in _STATED.finditer(text):
        letter = match[1] or match[2].upper()
        other = _OTHER_FOLLOWS.match(text, match.end())
        found.append(None if other and other[1] != letter and other[1] in options else letter)
    if not found:
        return False, None
    return True, found[-1] if found[-1] in options else None


def _leading(text: str, options: Mapping[str, str]) -> Reading:
    match = _LEADING_BRACKET.match(text) or _LEADING.match(text)
    if not match or match[1].upper() not in options:
        return False, None
    letter = match[1].upper()
    if _OTHER_FOLLOWS.match(text, match.end(1)):
        return False, None
    listed = {other for other in _ENUMERATED.findall(text) if other in options}
    copied = [other for other in listed if plain(options[other]) and plain(options[other]) in plain(text)]
    # all options repeated in order choose none
    return (False, None) if len(copied) > 1 else (True, letter)


def _named(text: str, options: Mapping[str, str]) -> Reading:
    return _only(set(_OPTION_LETTER.findall(text)), text, options)


def _alone(text: str, options: Mapping[str, str]) -> Reading:
    return _only(set(_LONE_LETTER.findall(_ARTICLE_OR_PRONOUN.sub(" ", text))), text, options)


def _only(found: set[str], text: str, options: Mapping[str, str]) -> Reading:
    """The only letter found; one that the answer denies ("not A") tells nothing, and neither do several."""
    known = found & set(options)
    if len(found) == 1 and known and not _NEGATED.search(text):
        return True, known.pop()
    return bool(known), None


def _by_text(output: str, options: Mapping[str, str]) -> str | None:
    """The only option whose words stand in the answer; one that stands only inside a longer one does not count."""
    answer = f" {plain(output)} "
    texts = {letter: f" {plain(text)} " for letter, text in options.items()}
    exact = [letter for letter, text in texts.items() if text == answer and text.strip()]
    if exact:
        return exact[0] if len(exact) == 1 else None
    found = []
    rest = answer
    for letter, text in sorted(texts.items(), key=lambda item: -len(item[1])):
        # Chinese has no spaces between words
        text = text.strip() if _CHINESE.search(text) else text
        if text.strip() and text in rest:
            found.append(letter)
            # words share the spaces between them
            rest = rest.replace(text, " \0 ")
    return found[0] if len(found) == 1 else None


def _by_number(output: str, options: Mapping[str, str]) -> str | None:
    """The only option that is the only number of the answer: "12.50" for "$12.50"."""
    given = find_numbers(output)
    numbers = {letter: number for letter, text in options.items() if (number := read_number(text)) is not None}
    if len(numbers) < len(options) or not given or any(one.share != given[0].share for one in given):
        return None
    same = [letter for letter, number in numbers.items() if same_number(given[0], number)]
    return same[0] if len(same) == 1 else None
