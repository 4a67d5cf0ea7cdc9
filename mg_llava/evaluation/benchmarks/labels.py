"""What stands in the answer cells of authors' files: labels, lists, numbers, nothing."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterable
from typing import Any

from mg_llava.evaluation.benchmarks.files import refuse
from mg_llava.evaluation.reading.answers import yes_no_label
from xtuner.json_values import parse_json

_NULLS = re.compile(r"\b(?:null|nan|NaN)\b(?=(?:[^'\"]*(['\"])[^'\"]*\1)*[^'\"]*$)")
_BARE_LIST = re.compile(r"\[\s*(?:'[^']*'|\"[^\"]*\")(?:\s+(?:'[^']*'|\"[^\"]*\"))+\s*\]")


def is_nothing(value: Any) -> bool:
    """Whether a value says that there is none: null, NaN, an empty text."""
    return value is None or (isinstance(value, float) and math.isnan(value)) or not str(value).strip()


def read_list(cell: str) -> list[str]:
    """Returns the texts of a cell: those of a JSON or Python list without its nulls, or the one that stands there.

    Nothing in a cell is ever executed.
    """
    if not cell.lstrip().startswith("["):
        return [cell]
    values = _parsed(cell.strip())
    # an answer that just begins with a bracket
    return [cell] if values is None else [str(value) for value in values if not is_nothing(value)]


def _parsed(cell: str) -> list[Any] | None:
    if _BARE_LIST.fullmatch(cell):
        # numpy prints no commas, and Python would join the texts
        return [single or double for single, double in re.findall(r"'([^']*)'|\"([^\"]*)\"", cell)]
    for text, read in ((cell, parse_json), (cell, ast.literal_eval), (_NULLS.sub("None", cell), ast.literal_eval)):
        try:
            values = read(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        return values if isinstance(values, list) else None
    return None


def answers_of(value: Any) -> list[str] | None:
    """Returns the right answers that a JSON value holds, one or a list, as text; None without any."""
    values = value if isinstance(value, list) else [value]
    answers = [str(one) for one in values if not is_nothing(one)]
    return answers or None


def yes_no_labels(labels: Iterable[tuple[str, Any]], path: str) -> list[str | None]:
    """Returns "yes", "no", or None where there is no label, in the order of the rows.

    Args:
        labels: (where it stands, its value).
        path: of their file, for the message.

    Raises:
        ProblemsError: with every row whose label is neither yes nor no in a usual writing.
    """
    read: list[str | None] = []
    problems = []
    for where, value in labels:
        known = None if is_nothing(value) else yes_no_label(value)
        if known is None and not is_nothing(value):
            problems.append(f"{where}: its answer is {value!r}, expected yes or no (or y/n, true/false, 1/0)")
        read.append(known)
    refuse(problems, path)
    return read
