"""Pictures that are named as Windows writes paths, told in one sentence with what to do."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

_DRIVE_OR_SHARE = re.compile(r"/?[A-Za-z]:|\\\\|//")
_ESCAPES = {"\t": "/t", "\n": "/n", "\r": "/r", "\b": "/b", "\f": "/f"}
"""What JSON reads where a path's single backslash stands before a letter, and what was meant."""


def windows_advice(missing: Sequence[str], total: int, holds: Callable[[str], bool]) -> str | None:
    """Returns a sentence about those missing pictures whose paths are Windows's; None where none is.

    Args:
        missing: paths at which no picture is, as the records give them.
        total: number of pictures that the records name.
        holds: says whether a picture is there, see `xtuner.data.pictures.files.PictureFiles`.
    """
    found = [path for path in missing if is_windows_path(path)]
    if not found:
        return None
    first = found[0]
    start = f"{len(found):,} of {total:,} pictures have paths of Windows, the first is {shown_path(first)}: "
    plain = _with_slashes(first)
    tails = [tail for tail in _tails(plain) if holds(tail)]
    if _DRIVE_OR_SHARE.match(first):
        advice = "write each path from the image folder on, with '/'"
    elif any(sign in first for sign in _ESCAPES):
        advice = "JSON reads a single backslash and its letter as a tab or a line break; write '/' instead"
    else:
        advice = "write '/' in place of each backslash"
    likely = _tails(plain)[-1] if _DRIVE_OR_SHARE.match(first) else plain
    example = f"here '{tails[0]}', which is there" if tails else f"such as '{likely}'"
    return f"{start}{advice}, {example}."


def is_windows_path(path: str) -> bool:
    """Says whether a path has a backslash, a drive or what JSON makes of single backslashes."""
    return "\\" in path or any(sign in path for sign in _ESCAPES) or re.match(r"/?[A-Za-z]:/", path) is not None


def shown_path(path: str) -> str:
    """Returns a path in quotes, on one line whatever it holds."""
    return repr(path) if any(ord(sign) < 32 for sign in path) else f"'{path}'"


def _with_slashes(path: str) -> str:
    for sign, meant in _ESCAPES.items():
        path = path.replace(sign, meant)
    return _DRIVE_OR_SHARE.sub("", path.replace("\\", "/"), count=1).strip("/")


def _tails(path: str) -> list[str]:
    parts = [part for part in path.split("/") if part]
    return ["/".join(parts[start:]) for start in range(len(parts))] or [path]
