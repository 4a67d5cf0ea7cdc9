"""Reading JSON arrays and JSONL record by record: a file of many gigabytes never stands in memory whole."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TextIO

from xtuner.errors import XTunerError

_CHUNK = 1 << 20
_LARGEST_RECORD = 64 << 20
_WHITESPACE = " \t\r\n"


@dataclass(frozen=True)
class Record:
    """One JSON value of a file; `index` counts from 0."""

    value: Any
    index: int


def read_records(path: str) -> Iterator[Record | str]:
    """Yields the elements of a JSON array, or the lines of a JSONL file (anything that does not start with
    ``[``).

    A malformed line of JSONL, or the malformed rest of an array, is yielded as a sentence ``"malformed
    JSON: ..."``.

    Raises:
        XTunerError: the file does not exist, is a folder, is empty, or is not UTF-8.
    """
    if not os.path.isfile(path):
        found = "is a folder" if os.path.isdir(path) else "does not exist"
        raise XTunerError(f"data file '{path}' {found}: give a LLaVA JSON or JSONL file as data_path.")
    try:
        # utf-8-sig: files saved on Windows may start with a byte-order mark
        with open(path, encoding="utf-8-sig") as file:
            start = _first_character(file)
            if not start:
                raise XTunerError(f"data file '{path}' is empty: expected a JSON array or JSONL of records.")
            file.seek(0)
            yield from _read_array(path, file) if start == "[" else _read_lines(path, file)
    except UnicodeDecodeError as error:
        raise XTunerError(f"data file '{path}' is not UTF-8 text ({error}): convert it first.") from error


def _first_character(file: TextIO) -> str:
    while chunk := file.read(4096):
        if stripped := chunk.lstrip(_WHITESPACE):
            return stripped[0]
    return ""


def _read_lines(path: str, file: TextIO) -> Iterator[Record | str]:
    index = 0
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            yield Record(json.loads(line), index)
        except json.JSONDecodeError as error:
            yield f"malformed JSON: '{path}' line {number}, column {error.colno}: {error.msg}"
            if number == 1:
                # one object spread over lines would otherwise fail once per line
                return
        index += 1


class _ArrayReader:
    """A window on the text of a JSON array: `buffer[position:]` is what was read and not yet used."""

    def __init__(self, file: TextIO) -> None:
        self.file = file
        self.buffer = ""
        self.position = 0
        self.lines_dropped = 0
        self.ended = False

    def fill(self, size: int = _CHUNK) -> bool:
        """Reads on; False at the end of the file."""
        chunk = self.file.read(size)
        if chunk:
            self.lines_dropped += self.buffer.count("\n", 0, self.position)
            self.buffer = self.buffer[self.position :] + chunk
            self.position = 0
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

    def line(self, position: int) -> int:
        """Number of the line, from 1, in which `position` of the buffer stands."""
        return self.lines_dropped + self.buffer.count("\n", 0, position) + 1


def _read_array(path: str, file: TextIO) -> Iterator[Record | str]:
    reader = _ArrayReader(file)
    reader.peek()
    reader.position += 1
    decoder = json.JSONDecoder()
    index = 0
    closing = reader.peek() == "]"
    while not closing:
        decoded = _decode(decoder, reader)
        if isinstance(decoded, json.JSONDecodeError):
            yield _malformed(path, reader, index, decoded.pos, decoded.msg)
            return
        yield Record(decoded[0], index)
        index += 1
        found = reader.peek()
        closing = found == "]"
        if not closing:
            if found != ",":
                detail = f"expected ',' or ']', found {found or 'the end of the file'!r}"
                yield _malformed(path, reader, index - 1, reader.position, detail)
                return
            reader.position += 1
            reader.peek()
    reader.position += 1
    if rest := reader.peek():
        yield _malformed(path, reader, index, reader.position, f"found {rest!r} after the end of the array")


def _decode(decoder: json.JSONDecoder, reader: _ArrayReader) -> tuple[Any] | json.JSONDecodeError:
    """Decodes the value at the reader's place, reading on (twice as much each time) while incomplete."""
    size = _CHUNK
    while True:
        try:
            value, end = decoder.raw_decode(reader.buffer, reader.position)
            # a number that ends with the buffer may go on in the file
            if end < len(reader.buffer) or reader.ended:
                reader.position = end
                return (value,)
        except json.JSONDecodeError as error:
            if len(reader.buffer) - reader.position > _LARGEST_RECORD:
                return error
            problem: json.JSONDecodeError | None = error
        else:
            problem = None
        if not reader.fill(size) and problem is not None:
            return problem
        size *= 2


def _malformed(path: str, reader: _ArrayReader, index: int, position: int, detail: str) -> str:
    return f"malformed JSON: '{path}' record number {index + 1}, line {reader.line(position)}: {detail}"
