"""Where a picture stands in a data source, as a text that takes a path's place: ``source:FILE#SPOT@NAME``."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import quote, unquote

SCHEME = "source:"
_CELL = re.compile(r"([^\[\]]+)\[(\d{1,18})\](?:\[(\d{1,9})\])?")
_BYTES = re.compile(r"(\d{1,18})\+(\d{1,18})")


class Place(NamedTuple):
    """A picture's place.

    Attributes:
        file: of the source, one of `SourceFiles.names`.
        spot: in the file: see `cell_spot` and `bytes_spot`.
        name: that the source gives the picture; "" where it gives none. Box files know it by this.
    """

    file: str
    spot: str
    name: str = ""

    def __str__(self) -> str:
        named = f"@{self.name}" if self.name else ""
        return f"{SCHEME}{quote(self.file, safe='/ ')}#{self.spot}{named}"


def read_place(text: str) -> Place | None:
    """Returns the place that a text gives; None for a path."""
    if not text.startswith(SCHEME):
        return None
    file, mark, rest = text.removeprefix(SCHEME).partition("#")
    spot, _, name = rest.partition("@")
    return Place(unquote(file), spot, name) if mark else None


def without_name(path: str) -> str:
    """Returns a place's text without the name that the source gives the picture; a path as it is."""
    place = read_place(path)
    return path if place is None else str(place._replace(name=""))


def cell_spot(column: str, row: int, number: int | None = None) -> str:
    """Returns the spot of a cell's picture, or of picture `number` of its list."""
    spot = f"{quote(column, safe=' ')}[{row}]"
    return spot if number is None else f"{spot}[{number}]"


def read_cell(spot: str) -> tuple[str, int, int] | None:
    """Returns column, row and number of a spot that `cell_spot` made; None for another text."""
    found = _CELL.fullmatch(spot)
    return found and (unquote(found[1]), int(found[2]), int(found[3] or 0))


def bytes_spot(offset: int, size: int) -> str:
    """Returns the spot of `size` bytes from `offset` on."""
    return f"{offset}+{size}"


def read_bytes(spot: str) -> tuple[int, int] | None:
    """Returns offset and size of a spot that `bytes_spot` made; None for another text."""
    found = _BYTES.fullmatch(spot)
    return found and (int(found[1]), int(found[2]))


def picture_name(path: str) -> str:
    """Returns the name by which other files know a picture: its path, or what its source calls it."""
    place = read_place(path)
    return path if place is None else place.name or path
