"""Where a picture stands in a data source, as a text that takes a path's place: ``source:FILE#SPOT@NAME``."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import quote, unquote

SCHEME = "source:"


class Place(NamedTuple):
    """A picture's place.

    Attributes:
        file: of the source, one of `SourceFiles.names`.
        spot: in the file: ``column[row]``, ``column[row][number]``, or ``offset+size``.
        name: that the source gives the picture; "" where it gives none. Box files know it by this.
    """

    file: str
    spot: str
    name: str = ""

    def __str__(self) -> str:
        named = f"@{self.name}" if self.name else ""
        return f"{SCHEME}{quote(self.file, safe='/ ')}#{quote(self.spot, safe='[]+ ')}{named}"


def read_place(text: str) -> Place | None:
    """Returns the place that a text gives; None for a path."""
    if not text.startswith(SCHEME):
        return None
    file, mark, rest = text.removeprefix(SCHEME).partition("#")
    spot, _, name = rest.partition("@")
    return Place(unquote(file), unquote(spot), name) if mark else None


def picture_name(path: str) -> str:
    """Returns the name by which other files know a picture: its path, or what its source calls it."""
    place = read_place(path)
    return path if place is None else place.name or path
