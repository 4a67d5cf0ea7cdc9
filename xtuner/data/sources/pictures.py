"""Pictures by their places in a data source, read where they lie."""

from __future__ import annotations

import io
import os
from functools import cached_property

import pyarrow as pa

from xtuner.data.pictures.files import FilePlaces, PictureFiles, picture_files
from xtuner.data.sources.locate import SourceFiles, is_columnar, locate
from xtuner.data.sources.places import SCHEME, Place, read_bytes, read_cell, read_place
from xtuner.data.sources.table import open_table
from xtuner.data.tables.arrow import ArrowTable
from xtuner.data.tables.parquet import ParquetTable
from xtuner.errors import SampleError, XTunerError


def open_pictures(
    image_folder: str, data_path: str | None = None, strict_paths: bool = False, in_order: bool = False
) -> PictureFiles:
    """Opens the pictures of a data source.

    Args:
        image_folder: see `xtuner.data.pictures.files.picture_files`; or ``source:DATA_PATH``: the pictures that stand
            in another data source.
        data_path: of the records; where it holds pictures itself, they are found there by their places.
        strict_paths: refuse pictures outside the folder.
        in_order: they will be asked for in the source's order, so row groups of any size can be read.

    Raises:
        XTunerError: nothing is there.
    """
    if image_folder.startswith(SCHEME):
        return SourcePictures(locate(image_folder.removeprefix(SCHEME)), "", strict_paths)
    if data_path is not None and is_columnar(data_path):
        found = locate(data_path)
        if found.kind != "json":
            return SourcePictures(found, image_folder, strict_paths, in_order)
    return picture_files(image_folder, strict_paths)


class SourcePictures:
    """Pictures by their places in the files of a data source; others by their paths.

    Nothing is copied. A picture in Parquet is read with its row group, in Arrow and tar alone. Pickles as its
    arguments.

    Args:
        found: the files.
        image_folder: where the pictures lie that the source gives by path.
        strict_paths: refuse those outside the folder.
        in_order: they will be asked for in the files' order.
    """

    def __init__(
        self, found: SourceFiles, image_folder: str, strict_paths: bool = False, in_order: bool = False
    ) -> None:
        self.found = found
        self.image_folder = image_folder
        self.strict_paths = strict_paths
        self.in_order = in_order
        self._numbers = {name: number for number, name in enumerate(found.names)}
        self._tables: dict[int, ParquetTable | ArrowTable] = {}
        self._places = FilePlaces()

    def __reduce__(self) -> tuple[type[SourcePictures], tuple[SourceFiles, str, bool, bool]]:
        return type(self), (self.found, self.image_folder, self.strict_paths, self.in_order)

    @cached_property
    def others(self) -> PictureFiles:
        """The pictures that are given by path."""
        return picture_files(self.image_folder, self.strict_paths)

    def open(self, path: str) -> str | io.BytesIO:
        """Returns the picture's bytes, or the path of its file.

        Raises:
            SampleError: there is no such place, or the file is damaged.
        """
        place = read_place(path)
        if place is None:
            return self.others.open(path)
        try:
            content = self._bytes(place)
        except SampleError:
            raise
        except XTunerError as error:
            raise SampleError("picture does not decode", f"picture '{path}': {error}") from error
        if content is None:
            raise SampleError(
                "missing picture",
                f"picture '{path}' is not in '{self.found.data_path}': it belongs to another data source, or to "
                "another version of this one.",
            )
        return io.BytesIO(content)

    def holds(self, path: str) -> bool:
        """Says whether the place or the path is there; the bytes are not looked at."""
        place = read_place(path)
        return self.others.holds(path) if place is None else self._is_there(place)

    def missing(self, paths: pa.StringArray) -> list[str]:
        """Returns those of `paths` that are not there."""
        plain: list[str] = []
        lost: list[str] = []
        for path in paths.to_pylist():
            if (place := read_place(path)) is None:
                plain.append(path)
            elif not self._is_there(place):
                lost.append(path)
        return lost + (self.others.missing(pa.array(plain, pa.string())) if plain else [])

    def outside(self, path: str) -> str | None:
        """Says how a path leads out of the image folder; a place never does."""
        return None if read_place(path) is not None else self.others.outside(path)

    def _is_there(self, place: Place) -> bool:
        number = self._numbers.get(place.file)
        if number is None:
            return False
        if (spot := read_bytes(place.spot)) is not None:
            return sum(spot) <= os.path.getsize(self.found.files[number])
        cell = read_cell(place.spot)
        if self.found.kind == "webdataset":
            return False
        table = self._table(number)
        return cell is not None and cell[0] in table.schema.names and cell[1] < len(table)

    def _bytes(self, place: Place) -> bytes | None:
        number = self._numbers.get(place.file)
        if number is None:
            return None
        if (spot := read_bytes(place.spot)) is not None:
            return self._places.read(self.found.files[number], *spot, str(place))
        cell = read_cell(place.spot)
        if self.found.kind == "webdataset":
            return None
        table = self._table(number)
        if cell is None or cell[0] not in table.schema.names:
            return None
        if self.in_order and isinstance(table, ParquetTable):
            return table.next_bytes_of(*cell)
        return table.bytes_of(*cell)

    def _table(self, number: int) -> ParquetTable | ArrowTable:
        if number not in self._tables:
            self._tables[number] = open_table(self.found.files[number], self.found.kind)
        return self._tables[number]
