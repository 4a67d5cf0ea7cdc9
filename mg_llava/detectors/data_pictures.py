"""The pictures of a data set that get boxes, and the names by which training will look their boxes up."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from mg_llava.pictures.open import open_picture
from xtuner.data.pictures.files import PictureFiles
from xtuner.data.records.records import Record
from xtuner.data.sources import open_pictures, open_source
from xtuner.data.sources.places import picture_name, without_name
from xtuner.data.text.conversations import RecordError, parse_record
from xtuner.errors import SampleError, XTunerError, counted
from xtuner.log import get_logger

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


class DataPictures:
    """Pictures by the name that a box file knows them by. Pickled into the processes that read.

    Args:
        image_folder: that the records' paths are relative to, or archives of pictures; not needed where the records'
            own files hold them.
        data_path: records of any form that training reads; None = every picture below `image_folder`.
        columns: the column of each field that has another name, see `xtuner.data.sources.columns.FIELDS`.

    Attributes:
        names: of the pictures, in the data's order.

    Raises:
        XTunerError: folder or records are absent or faulty, or name no picture.
    """

    def __init__(
        self, image_folder: str | None, data_path: str | None = None, columns: Mapping[str, str] | None = None
    ) -> None:
        if data_path is None:
            self._files, self._places = _all_below(image_folder)
        else:
            source = open_source(data_path, columns)
            self._files = open_pictures(image_folder or "", data_path)
            self._places = _by_name(_paths(source.records()), self._files, data_path)
        self.names = list(self._places)
        if not self.names:
            raise XTunerError(f"'{data_path or image_folder}' names no pictures: check --data and --image-folder.")

    def open(self, name: str, apply_exif_orientation: bool = False) -> Image.Image:
        """Reads a picture as 8-bit RGB.

        Raises:
            SampleError: it is missing or does not decode.
        """
        return open_picture(self._files.open(self._places[name]), apply_exif_orientation)


def _all_below(image_folder: str | None) -> tuple[PictureFiles, dict[str, str]]:
    if image_folder is None or not os.path.isdir(image_folder):
        wanted = "name --image-folder or --data" if image_folder is None else "check --image-folder"
        raise XTunerError(
            f"the image folder '{image_folder or ''}' does not exist: {wanted}. Pictures in archives are found by "
            "their records (--data)."
        )
    below = Path(image_folder).rglob("*")
    files = [path for path in below if path.suffix.lower() in _SUFFIXES and path.is_file()]
    names = sorted(path.relative_to(image_folder).as_posix() for path in files)
    return open_pictures(image_folder), {name: name for name in names}


def _paths(records: Iterable[Record | str]) -> Iterator[str]:
    """Yields the pictures of the records, as these name them.

    Raises:
        XTunerError: a record cannot be read.
    """
    for record in records:
        if isinstance(record, str):
            raise XTunerError(record)
        try:
            yield from parse_record(record.value, record.index).images
        except RecordError:
            # what it says may be faulty, its pictures are there all the same
            yield from _named_pictures(record.value)


def _named_pictures(value: Any) -> Iterator[str]:
    for name in ("image", "images") if isinstance(value, Mapping) else ():
        found = value.get(name)
        yield from (str(path) for path in (found if isinstance(found, list) else [found]) if path)


def _by_name(paths: Iterable[str], files: PictureFiles, data_path: str) -> dict[str, str]:
    """Returns where each picture stands by its name; by its place where others, which differ, have the same name."""
    uses: dict[str, list[str]] = {}
    for path in dict.fromkeys(paths):
        uses.setdefault(picture_name(path), []).append(path)
    found: dict[str, str] = {}
    shared = []
    for name, places in uses.items():
        if len(places) == 1 or len({_digest(files, place) for place in places}) == 1:
            found[name] = places[0]
        else:
            # by the name, training would take the boxes of one for the other's
            found |= {without_name(place): place for place in places}
            shared.append(name)
    if shared:
        get_logger().info(
            "'%s' gives different pictures the same name (%s, the first is '%s'): they are known by their places, "
            "which training on prepared data finds, and a stream does not.",
            data_path,
            counted(len(shared), "names"),
            shared[0],
        )
    return found


def _digest(files: PictureFiles, path: str) -> bytes:
    try:
        found = files.open(path)
        content = Path(found).read_bytes() if isinstance(found, str) else found.getvalue()
    except (SampleError, OSError):
        # told where boxes are looked for
        return b""
    return hashlib.blake2b(content, digest_size=16).digest()
