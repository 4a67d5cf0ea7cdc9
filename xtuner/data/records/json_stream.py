"""Elements of a JSON array or object one by one, from a window on the text."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TextIO

from xtuner.json_values import Decoder, Hopeless

_CHUNK = 1 << 20
_LARGEST_RECORD = 64 << 20
_WHITESPACE = " \t\r\n"


@dataclass(frozen=True)
class Record:
    """One JSON value of a file; `index` counts from 0, `key` is its name where the file is an object."""

    value: Any
    index: int
    key: str | None = None


def first_character(file: TextIO) -> str:
    """Returns the first character that is no white space, "" where there is none."""
    while chunk := file.read(4096):
        if stripped := chunk.lstrip(_WHITESPACE):
            return stripped[0]
    return ""


class Window:
    """A window on the text of a JSON file: `buffer[position:]` is what was read and not yet used.

    The value decoded last is `buffer[start:position]`.
    """

    def __init__(self, file: TextIO, on_bytes: Callable[[int], None] | None = None) -> None:
        self.file = file
        self.buffer = ""
        self.position = 0
        self.start = 0
        self.lines_dropped = 0
        self.ended = False
        self.decoder = Decoder()
        self._on_bytes = on_bytes

    def fill(self, size: int | None = None) -> bool:
        """Reads on; False at the end of the file."""
        chunk = self.file.read(_CHUNK if size is None else size)
        if chunk:
            self.lines_dropped += self.buffer.count("\n", 0, self.position)
            self.buffer = self.buffer[self.position :] + chunk
            self.position = 0
        if self._on_bytes is not None:
            self._on_bytes(self.file.buffer.tell())
        self.ended = not chunk
        return bool(chunk)

    def peek(self) -> str:
        """Returns the next character that is no white space, "" at the end of the file; stands on it."""
        while True:
            while self.position < len(self.buffer):
                if self.buffer[self.position] not in _WHITESPACE:
                    return self.buffer[self.position]
                self.position += 1
            if not self.fill():
                return ""

    def place(self, position: int) -> str:
        """Says where `position` of the buffer stands: line and column, both from 1."""
        line = self.lines_dropped + self.buffer.count("\n", 0, position) + 1
        return f"line {line}, column {position - self.buffer.rfind(chr(10), 0, position)}"

    def decode(self) -> Any:
        """Decodes the value at the window's place, reading on (twice as much each time) while it is incomplete.

        Raises:
            json.JSONDecodeError: it is malformed, or the file ends within it.
        """
        size = _CHUNK
        while True:
            problem: json.JSONDecodeError | None = None
            try:
                value, end = self.decoder.raw_decode(self.buffer, self.position)
                # a number that ends with the buffer may go on in the file
                if end < len(self.buffer) or self.ended:
                    self.start, self.position = self.position, end
                    return value
            except Hopeless:
                raise
            except json.JSONDecodeError as error:
                if len(self.buffer) - self.position > _LARGEST_RECORD:
                    raise
                problem = error
            if not self.fill(size) and problem is not None:
                raise problem
            size *= 2


def stream_elements(path: str, window: Window) -> Iterator[Record | str]:
    """Yields the elements of the array, or the values of the object, that the file is.

    What does not parse ends the reading and is yielded as a sentence ``"malformed JSON: ..."``; so is an element that
    parses but is nested too deeply or names something twice, and the reading goes on behind it.
    """
    closing = "]" if window.peek() == "[" else "}"
    window.position += 1
    index = 0
    try:
        at_end = window.peek() == closing
        while not at_end:
            key = _key(window) if closing == "}" else None
            value = window.decode()
            fault = window.decoder.fault(value, window.buffer[window.start : window.position])
            index += 1
            if fault is None:
                yield Record(value, index - 1, key)
            else:
                yield f"malformed JSON: '{path}' record number {index}: {fault}"
            at_end = _next(window, closing)
        window.position += 1
        if rest := window.peek():
            raise _error(f"found {rest!r} after the end", window)
    except json.JSONDecodeError as error:
        number = index + (not error.msg.startswith("expected ','"))
        yield f"malformed JSON: '{path}' record number {number}, {window.place(error.pos)}: {error.msg}"


def _key(window: Window) -> str:
    key = window.decode()
    if not isinstance(key, str):
        raise _error(f"expected a name in quotes, found {key!r}", window)
    if window.peek() != ":":
        raise _error("expected ':'", window)
    window.position += 1
    window.peek()
    return key


def _next(window: Window, closing: str) -> bool:
    """Goes past the comma between two elements; True at the end."""
    found = window.peek()
    if found == closing:
        return True
    if found != ",":
        raise _error(f"expected ',' or '{closing}', found {found or 'the end of the file'!r}", window)
    window.position += 1
    window.peek()
    return False


def _error(message: str, window: Window) -> json.JSONDecodeError:
    return json.JSONDecodeError(message, window.buffer, window.position)
