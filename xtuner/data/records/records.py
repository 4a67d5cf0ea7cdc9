"""Reading JSON arrays, objects and JSONL record by record: a file of many gigabytes never stands in memory whole."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TextIO

from xtuner.data.records.json_stream import Record, Window, first_character, stream_elements
from xtuner.errors import XTunerError
from xtuner.json_values import JSONFault, parse_json

__all__ = ["Record", "RecordSource", "read_keyed_records", "read_records"]

_LINES_PER_REPORT = 1000
_LONGEST_LINE = 16 << 20
"""A whole object of gigabytes may stand on one line."""


class RecordSource(Protocol):
    """Training records, in whichever form they lie.

    Attributes:
        data_path: as the setting names it.
    """

    data_path: str

    def records(self, on_bytes: Callable[[int], None] | None = None) -> Iterator[Record | str]:
        """Yields records; a sentence ``"kind: what is wrong"`` for one that cannot be read.

        Args:
            on_bytes: told now and then how many of `size` bytes have been read.
        """
        ...

    def size(self) -> int:
        """Returns the bytes of the records, those of pictures left out where they lie beside them."""
        ...

    def identity(self) -> dict[str, Any]:
        """Returns ``path``, ``size`` and ``digest`` of what the records say: two sources of one digest are the same."""
        ...


def read_records(path: str, on_bytes: Callable[[int], None] | None = None) -> Iterator[Record | str]:
    """Yields the elements of a JSON array, or the lines of a JSONL file (anything that does not start with
    ``[``).

    A malformed line of JSONL, or the malformed rest of an array, is yielded as a sentence ``"malformed
    JSON: ..."``.

    Args:
        path: the file.
        on_bytes: told now and then how many bytes have been read.

    Raises:
        XTunerError: the file does not exist, is a folder, is empty, or is not UTF-8.
    """
    if not os.path.isfile(path):
        found = "is a folder" if os.path.isdir(path) else "does not exist"
        raise XTunerError(f"data file '{path}' {found}: set data_path to a LLaVA JSON or JSONL file.")
    yield from _read(path, "data file", on_bytes, objects=False)


def read_keyed_records(path: str, what: str, on_bytes: Callable[[int], None] | None = None) -> Iterator[Record | str]:
    """Like `read_records`, and an object's values with their keys.

    A file that starts with ``{`` is JSONL where its first line is an object on its own, else one object.

    Args:
        path: an existing file.
        what: how messages call it.
        on_bytes: told now and then how many bytes have been read.

    Raises:
        XTunerError: the file is empty or is not UTF-8.
        OSError: it cannot be read.
    """
    yield from _read(path, what, on_bytes, objects=True)


def _read(path: str, what: str, on_bytes: Callable[[int], None] | None, objects: bool) -> Iterator[Record | str]:
    try:
        # utf-8-sig: files saved on Windows may start with a byte-order mark
        with open(path, encoding="utf-8-sig") as file:
            start = first_character(file)
            if not start:
                raise XTunerError(f"{what} '{path}' is empty: expected a JSON array or JSONL of records.")
            file.seek(0)
            if start == "[" or (objects and start == "{" and not _is_jsonl(file)):
                yield from stream_elements(path, Window(file, on_bytes))
            else:
                yield from _read_lines(path, file, on_bytes)
    except UnicodeDecodeError as error:
        raise XTunerError(f"{what} '{path}' is not UTF-8 text ({_bad_line(path)}): convert it first.") from error


def _bad_line(path: str) -> str:
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1 and line.startswith((b"\xff\xfe", b"\xfe\xff")):
                return "it is UTF-16"
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return f"line {number}, byte {error.start + 1}: {error.reason}"
    return "its end is cut off"


def _is_jsonl(file: TextIO) -> bool:
    """True where the first line is a record on its own; a whole object on one line ends the file instead."""
    line = file.readline(_LONGEST_LINE)
    more = line.endswith("\n") and bool(file.readline(_LONGEST_LINE).strip())
    file.seek(0)
    try:
        record = parse_json(line, whole_characters=False)
    except JSONFault:
        return False
    return more or "boxes" in record


def _read_lines(path: str, file: TextIO, on_bytes: Callable[[int], None] | None) -> Iterator[Record | str]:
    index = 0
    for number, line in enumerate(file, start=1):
        if on_bytes is not None and number % _LINES_PER_REPORT == 0:
            on_bytes(file.buffer.tell())
        if not line.strip():
            continue
        try:
            yield Record(parse_json(line, whole_characters=False), index)
        except JSONFault as error:
            column = error.place.partition(", ")[2]
            yield f"malformed JSON: '{path}' line {number}{', ' if column else ''}{column}: {error.reason}"
            if number == 1:
                # one object spread over lines would otherwise fail once per line
                return
        index += 1
