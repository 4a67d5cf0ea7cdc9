"""The pictures of a data set that get boxes, and its videos, by the names under which training will look them up."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image

from mg_llava.detectors.data_videos import SUFFIXES, DataVideos
from mg_llava.pictures.open import open_picture
from mg_llava.videos.places import read_video_name
from mg_llava.videos.sampling import FrameSampling
from xtuner.data.pictures.files import PictureFiles
from xtuner.data.records.records import Record
from xtuner.data.sources import open_pictures, open_source
from xtuner.data.sources.places import picture_name, without_name
from xtuner.data.text.conversations import RecordError, parse_record
from xtuner.errors import SampleError, XTunerError, counted
from xtuner.log import get_logger

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


class DataPictures:
    """Pictures by the name that a box file knows them by, and videos. Pickled into the processes that read.

    Args:
        image_folder: that the records' paths are relative to, or archives of pictures; not needed where the records'
            own files hold them.
        data_path: records of any form that training reads; None = every picture below `image_folder`.
        columns: the column of each field that has another name, see `xtuner.data.sources.columns.FIELDS`.
        sampling: which frames of the records' videos are taken, too; without records every video below `image_folder`
            is meant, and no picture. None = no videos.

    Attributes:
        names: of the pictures, in the data's order; those of folders of frames among them.
        videos: with `sampling`.

    Raises:
        XTunerError: folder or records are absent or faulty, or name no picture (and no video).
    """

    def __init__(
        self,
        image_folder: str | None,
        data_path: str | None = None,
        columns: Mapping[str, str] | None = None,
        sampling: FrameSampling | None = None,
    ) -> None:
        self.videos: DataVideos | None = None
        if data_path is None:
            folder = _existing(image_folder)
            self._files = open_pictures(folder)
            found = _all_below(folder, _SUFFIXES if sampling is None else SUFFIXES)
            pictures, uses = (found, {}) if sampling is None else ([], {name: [name] for name in found})
        else:
            source = open_source(data_path, columns)
            self._files = open_pictures(image_folder or "", data_path)
            pictures, uses = _read(source.records(), sampling is not None)
        where = str(data_path or image_folder)
        self._places = _by_name(pictures, self._files, where)
        if sampling is not None:
            self.videos = DataVideos(uses, _by_name(uses, self._files, where), self._files, sampling)
            self._places |= {name: name for name in self.videos.folder_frames}
        self.names = list(self._places)
        if not self.names and not (self.videos and self.videos.names):
            more = "" if sampling is None else " and no videos"
            raise XTunerError(f"'{where}' names no pictures{more}: check --data and --image-folder.")

    def open(self, name: str, apply_exif_orientation: bool = False) -> Image.Image:
        """Reads a picture as 8-bit RGB.

        Raises:
            SampleError: it is missing or does not decode.
        """
        return open_picture(self._files.open(self._places[name]), apply_exif_orientation)


def _existing(image_folder: str | None) -> str:
    if image_folder is None or not os.path.isdir(image_folder):
        wanted = "name --image-folder or --data" if image_folder is None else "check --image-folder"
        raise XTunerError(
            f"the image folder '{image_folder or ''}' does not exist: {wanted}; pictures in archives are found by "
            "their records (--data)."
        )
    return image_folder


def _all_below(folder: str, suffixes: Collection[str]) -> list[str]:
    files = [path for path in Path(folder).rglob("*") if path.suffix.lower() in suffixes and path.is_file()]
    return sorted(path.relative_to(folder).as_posix() for path in files)


def _read(records: Iterable[Record | str], with_videos: bool) -> tuple[list[str], dict[str, list[str]]]:
    """Returns the pictures of the records, as these name them, and of each video's path the names that stand for it.

    Raises:
        XTunerError: a record cannot be read.
    """
    pictures: dict[str, None] = {}
    uses: dict[str, dict[str, None]] = {}
    for record in records:
        if isinstance(record, str):
            raise XTunerError(record)
        try:
            talk = parse_record(record.value, record.index, videos=with_videos)
            images, videos = talk.images, talk.videos
        except RecordError:
            # what it says may be faulty, its pictures are there all the same
            images = tuple(_named(record.value, "image", "images"))
            videos = tuple(_named(record.value, "video", "videos")) if with_videos else ()
        pictures.update(dict.fromkeys(images))
        for name in videos:
            with suppress(XTunerError):
                # a range that is none is told by what trains on it
                uses.setdefault(read_video_name(name).path, {})[name] = None
    return list(pictures), {path: list(names) for path, names in uses.items()}


def _named(value: Any, *fields: str) -> Iterator[str]:
    for name in fields if isinstance(value, Mapping) else ():
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
