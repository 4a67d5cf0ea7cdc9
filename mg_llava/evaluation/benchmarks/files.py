"""Reading the authors' files: JSON, JSON lines, tables; what is wrong is named with its line."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from xtuner.errors import ProblemsError, XTunerError
from xtuner.json_values import JSONFault, parse_json

_MOST_PROBLEMS = 20
_WIDE = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Encodings by the mark that begins their files; UTF-32's begins with UTF-16's."""


def encoding_of(path: str) -> str:
    """Returns the encoding that a file's first bytes name: UTF-16 or UTF-32, as spreadsheets save, else UTF-8."""
    with open(path, "rb") as file:
        start = file.read(4)
    return next((name for mark, name in _WIDE.items() if start.startswith(mark)), "utf-8-sig")


def _utf8(path: str) -> bytes:
    """The file's text as UTF-8.

    Raises:
        XTunerError: it is not in the encoding that its first bytes name.
    """
    content, encoding = Path(path).read_bytes(), encoding_of(path)
    if encoding == "utf-8-sig":
        # the reader of JSON names the place of what is wrong
        return content
    try:
        return content.decode(encoding).encode()
    except UnicodeError as error:
        raise XTunerError(f"'{path}' begins as {encoding.upper()} and is not: {error}. Download it again.") from error


def read_json(path: str) -> Any:
    """Reads a JSON file.

    Raises:
        XTunerError: it is malformed; the message says where.
    """
    try:
        return parse_json(_utf8(path))
    except JSONFault as error:
        raise XTunerError(f"'{path}' is not JSON: {error}. Download it again, or repair it.") from error


def read_json_lines(path: str) -> list[dict[str, Any]]:
    """Reads a file of one JSON object a line; empty lines are skipped.

    Raises:
        XTunerError: a line is malformed or no object; the message names it.
    """
    rows = []
    with open(path, "rb") if encoding_of(path) == "utf-8-sig" else io.BytesIO(_utf8(path)) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = parse_json(line)
            except JSONFault as error:
                raise XTunerError(
                    f"'{path}' line {number} is not JSON: {error.reason}. Download it again, or repair it."
                ) from error
            if not isinstance(row, dict):
                raise XTunerError(f"'{path}' line {number}: expected an object, found {type(row).__name__}.")
            rows.append(row)
    return rows


def require(rows: Iterable[tuple[str, Mapping[str, Any]]], keys: Sequence[str], path: str) -> None:
    """Checks that all rows have a value under all `keys`; JSON's null and NaN are none.

    Args:
        rows: (where it stands, e.g. "row 3", the row).
        keys: that no row can do without.
        path: of their file, for the message.

    Raises:
        ProblemsError: with every row that lacks one, and which; of many the first.
    """
    problems = []
    for where, row in rows:
        if not isinstance(row, Mapping):
            problems.append(f"{where}: expected an object, found {type(row).__name__}")
            continue
        absent = [key for key in keys if row.get(key) is None or row[key] != row[key]]
        if absent:
            present = ", ".join(str(key) for key, value in row.items() if value is not None) or "nothing"
            problems.append(f"{where}: no {', '.join(absent)} among {present}; every row needs it")
    refuse(problems, path)


def refuse(problems: Sequence[str], path: str) -> None:
    """Reports the problems of a file's rows, if there are any.

    Raises:
        ProblemsError: with every problem; of many the first.
    """
    if len(problems) > _MOST_PROBLEMS:
        problems = [*problems[:_MOST_PROBLEMS], f"… and {len(problems) - _MOST_PROBLEMS} more rows"]
    if problems:
        raise ProblemsError(f"'{path}'", list(problems))


def read_questions(path: str, keys: Sequence[str]) -> list[dict[str, Any]]:
    """Reads JSON lines that all have `keys`.

    Raises:
        XTunerError: a line is malformed or lacks a key; the message says which.
    """
    rows = read_json_lines(path)
    require(((f"question {number}", row) for number, row in enumerate(rows, start=1)), keys, path)
    return rows


def read_records(path: str, keys: Sequence[str]) -> list[dict[str, Any]]:
    """Reads a JSON list of objects that all have `keys`.

    Raises:
        XTunerError: it is none, or a record lacks a key; the message says which record.
    """
    rows = read_json(path)
    if not isinstance(rows, list):
        raise XTunerError(f"'{path}': expected a JSON list of questions, found {type(rows).__name__}.")
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise XTunerError(f"'{path}' record {number}: expected an object, found {type(row).__name__}.")
    require(((f"record {number}", row) for number, row in enumerate(rows)), keys, path)
    return rows


def read_table(path: str, separator: str = "\t") -> list[dict[str, str]]:
    """Reads a table with a header; empty cells and the word nan are left out of a row, everything else stays text.

    A row without any cell stays, empty, so that numbers of rows are those of the file.

    Args:
        path: of the file.
        separator: between cells.

    Raises:
        XTunerError: the file is not such a table.
    """
    try:
        # "None" and "NA" are words that options are made of, so pandas' own list of missing values is not used
        table = pd.read_csv(
            path,
            sep=separator,
            dtype=str,
            keep_default_na=False,
            na_values=["", "nan", "NaN"],
            encoding=encoding_of(path),
        )
    except (ValueError, OverflowError) as error:  # those of pandas and of decoding among them
        kind = "a tab-separated" if separator == "\t" else "such a"
        raise XTunerError(f"'{path}' is not {kind} table: {str(error).strip()}. Download it again.") from error
    return [
        # a table that went through Windows has other line breaks in its cells
        {str(key): value.replace("\r\n", "\n") for key, value in row.items() if isinstance(value, str)}
        for row in table.to_dict("records")
    ]
