"""JSON text of others to values: whatever the text holds, there is a value or one kind of error."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from xtuner.errors import XTunerError

DEPTH = 64
"""Most lists and objects within each other; more would exhaust the stack of whoever walks through the value."""

_NOT_BRACKETS = bytes(sorted(set(range(256)) - set(b"[]{}")))
_HALF = re.compile(r"\\u[dD][89a-fA-F]")
_LONG_NUMBER = re.compile("[0-9]{4301}")
_KINDS = {
    dict: "an object", list: "a list", str: "a text", int: "a number", float: "a number", bool: "true or false",
}  # fmt: skip
_BACKSLASH = "a backslash is written twice in JSON, and paths are written with '/'"
_WHITESPACE = " \t\r\n"


class JSONFault(ValueError):
    """Text that is not the JSON that is expected.

    Attributes:
        reason: what is wrong.
        place: ``"line 3, column 7"`` or ``"record number 3"``; "" where neither is known.
    """

    def __init__(self, reason: str, place: str = "") -> None:
        self.reason = reason
        self.place = place
        super().__init__(f"{place}: {reason}" if place else reason)


class Hopeless(json.JSONDecodeError):
    """Malformed in a way that more text cannot mend."""


class Decoder:
    """Decodes values one by one, as `json.JSONDecoder.raw_decode` does, with every failure a `json.JSONDecodeError`."""

    def __init__(self) -> None:
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object)
        self._repeated: str | None = None

    def raw_decode(self, text: str, position: int) -> tuple[Any, int]:
        """Returns the value that begins at `position` and the place after it.

        Raises:
            json.JSONDecodeError: it is malformed; a `Hopeless` where it is nested or a number is too long to read.
        """
        self._repeated = None
        try:
            return self._decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            if error.msg.startswith("Invalid \\"):
                raise json.JSONDecodeError(f"{error.msg}; {_BACKSLASH}", error.doc, error.pos) from None
            raise
        except RecursionError:
            raise Hopeless(f"nested more than {DEPTH} deep", text, position) from None
        except ValueError:
            # Python's own guard: converting digits takes time that grows with their square
            long = _LONG_NUMBER.search(text, position)
            place = long.start() if long else position
            raise Hopeless("a number has more than 4,300 digits", text, place) from None

    def fault(self, value: Any, text: str) -> str | None:
        """Returns what is wrong with a value that was just decoded from `text`; None where nothing is."""
        if self._repeated is not None:
            return f"the name {self._repeated[:60]!r} stands twice in one object"
        if _may_be_deep(text) and _is_deep(value):
            return f"nested more than {DEPTH} deep"
        return None

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) != len(pairs) and self._repeated is None:
            ((self._repeated, _),) = Counter(name for name, _ in pairs).most_common(1)
        return content


def parse_json(text: str | bytes, whole_characters: bool = True) -> Any:
    """Returns the value of a JSON text.

    Args:
        text: with or without a byte-order mark; bytes as UTF-8.
        whole_characters: refuse halves of characters (``"\\ud83d"`` alone), which no file and no tokenizer takes.

    Raises:
        JSONFault: it is not UTF-8, malformed, nested more than `DEPTH` deep, has a number of thousands of digits, or a
            name stands twice in one object.
    """
    if isinstance(text, bytes):
        text = _decode(text)
    text = text.removeprefix("\ufeff")
    start = len(text) - len(text.lstrip(_WHITESPACE))
    decoder = Decoder()
    try:
        value, end = decoder.raw_decode(text, start)
        end += len(text[end:]) - len(text[end:].lstrip(_WHITESPACE))
        if end < len(text):
            raise json.JSONDecodeError(f"found {text[end]!r} after the end", text, end)
    except json.JSONDecodeError as error:
        raise JSONFault(error.msg, f"line {error.lineno}, column {error.colno}") from None
    fault = decoder.fault(value, text)
    if fault is None and whole_characters and holds_half(value, text):
        fault = "a text holds half of a character (half of a surrogate pair): write the whole character, or U+FFFD"
    if fault is not None:
        raise JSONFault(fault, _place(text, start, whole_characters))
    return value


def count_values(content: bytes) -> int:
    """Returns about how many values a JSON text holds, never too few, without parsing it.

    Each value but the first of a list or object stands after a comma, the first after its bracket; signs within texts
    count too.
    """
    return sum(content.count(sign) for sign in (b",", b"[", b"{"))


def read_json(path: str | Path, expected: type | tuple[type, ...] = object, advice: str = "") -> Any:
    """Returns the value of a JSON file.

    Args:
        path: of the file.
        expected: what it must be, e.g. `dict`.
        advice: what to do where it is something else; what a sentence goes on with, full stop included.

    Raises:
        XTunerError: it cannot be read, is not JSON (see `parse_json`), or something else than `expected`.
    """
    advice = advice or "mend it, or put the original back."
    try:
        value = parse_json(Path(path).read_bytes())
    except JSONFault as error:
        raise XTunerError(f"'{path}' is not JSON: {error}; {advice}") from error
    except (OSError, ValueError) as error:
        raise XTunerError(f"'{path}' cannot be read: {error}; {advice}") from error
    if not isinstance(value, expected):
        kinds = expected if isinstance(expected, tuple) else (expected,)
        names = " or ".join(_KINDS.get(kind, kind.__name__) for kind in kinds)
        raise XTunerError(f"'{path}' holds {_KINDS.get(type(value), 'null')}: expected {names}; {advice}")
    return value


def holds_half(value: Any, text: str) -> bool:
    """True where a string of `value`, decoded from `text`, holds half of a surrogate pair."""
    if not _HALF.search(text):
        return False
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def _decode(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if content.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise JSONFault("it is UTF-16, expected UTF-8") from None
        line = content.count(b"\n", 0, error.start) + 1
        raise JSONFault(f"not UTF-8 text ({error.reason})", f"line {line}") from None


def _may_be_deep(text: str) -> bool:
    if text.count("[") + text.count("{") <= DEPTH:
        return False
    # brackets alone, from which pairs are taken out: as often as they are nested. Brackets in texts mislead, which only
    # costs time unless they are made to; the limit of Python's own stack stands behind this
    brackets = text.encode("utf-8", "surrogatepass").translate(None, _NOT_BRACKETS)
    for _ in range(DEPTH):
        fewer = brackets.replace(b"[]", b"").replace(b"{}", b"")
        if len(fewer) == len(brackets):
            break
        brackets = fewer
    return bool(brackets)


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(DEPTH + 1):
        containers = [item for item in level if isinstance(item, (list, dict))]
        if not containers:
            return False
        level = [inner for item in containers for inner in (item.values() if isinstance(item, dict) else item)]
    return True


def _place(text: str, start: int, whole_characters: bool) -> str:
    """The element of a list that has a fault."""
    if not text.startswith("[", start):
        return ""
    decoder = Decoder()
    position, number = start + 1, 0
    while True:
        while text[position] in _WHITESPACE or text[position] == ",":
            position += 1
        if text[position] == "]":
            return ""
        number += 1
        value, end = decoder.raw_decode(text, position)
        part = text[position:end]
        if decoder.fault(value, part) or (whole_characters and holds_half(value, part)):
            return f"record number {number}"
        position = end
