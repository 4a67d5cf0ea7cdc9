"""Which pictures of a benchmark stand in folders of training pictures, byte for byte."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from xtuner.errors import XTunerError

_CHUNK = 2**20


def picture_mark(content: bytes) -> tuple[int, str]:
    """Returns size and SHA-256 of a picture's file: equal for equal files, whatever they are called."""
    return len(content), hashlib.sha256(content).hexdigest()


def marks_in_folders(marks: Iterable[tuple[int, str]], folders: Iterable[str]) -> dict[tuple[int, str], str]:
    """Returns those of `marks` that a file below `folders` has, and the first such file.

    Only files of a size that occurs among `marks` are read, so that millions of training pictures cost a listing.

    Args:
        marks: of pictures, see `picture_mark`.
        folders: of training pictures, with all folders below them.

    Raises:
        XTunerError: a folder does not exist.
    """
    by_size: dict[int, set[str]] = {}
    for size, digest in marks:
        by_size.setdefault(size, set()).add(digest)
    found: dict[tuple[int, str], str] = {}
    for folder in folders:
        if not os.path.isdir(folder):
            raise XTunerError(f"'{folder}' is no folder of training pictures: --train-images takes folders.")
        for path in _candidates(folder, by_size):
            mark = (path.stat().st_size, _digest(path))
            if mark[1] in by_size.get(mark[0], ()):
                found.setdefault(mark, str(path))
    return found


def _candidates(folder: str, by_size: Mapping[int, set[str]]) -> Iterator[Path]:
    """Files of one of the sizes, in order of their names; broken links are none."""
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(parent, name)
            if path.is_file() and path.stat().st_size in by_size:
                yield path


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
