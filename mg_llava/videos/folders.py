"""A folder of pictures, one a frame, as a video; on the disk or in an archive."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from mg_llava.pictures.open import open_picture, picture_size
from mg_llava.videos.places import FramePlace
from xtuner.errors import SampleError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
FPS = 1.0
"""Frames per second of a folder, which does not say, unless whoever asks knows better: frame i is shown from second i
on.
"""
_DIGITS = re.compile(r"(\d+)")


def frame_names(folder: str) -> list[str]:
    """Returns the names of the pictures in `folder`, in the order of the numbers in them.

    Raises:
        SampleError: there is none, or the folder cannot be read.
    """
    try:
        names = [name for name in os.listdir(folder) if name.lower().endswith(SUFFIXES)]
    except OSError as error:
        raise SampleError(
            "video does not decode", f"the folder of frames '{folder}' cannot be read ({error.strerror})."
        ) from error
    if not names:
        raise SampleError(
            "video without frames",
            f"video '{folder}' is a folder without pictures: expected frames such as 0001.jpg in it.",
        )
    return sorted(names, key=_natural)


@dataclass(frozen=True)
class StoredFrames:
    """A folder of frames that is no folder of the disk.

    Attributes:
        folder: its path, as it is stored.
        paths: of its pictures, in the order of the numbers in their names.
        open: returns a picture's file or its bytes.
    """

    folder: str
    paths: tuple[str, ...]
    open: Callable[[str], str | io.BytesIO] = field(repr=False)

    @classmethod
    def of(
        cls, folder: str, members: Iterable[str], open_member: Callable[[str], str | io.BytesIO]
    ) -> StoredFrames | None:
        """Returns the folder of those of `members` that are pictures; None where none is."""
        pictures = [name for name in members if name.lower().endswith(SUFFIXES)]
        return cls(folder, tuple(sorted(pictures, key=_natural)), open_member) if pictures else None


class FolderVideo:
    """Pictures of a folder, as long each.

    Args:
        folder: its path, or a stored one.
        max_pixels: most pixels of a frame.
        fps: frames per second.

    Raises:
        SampleError: it holds no pictures.
    """

    codec = "pictures"

    def __init__(self, folder: str | StoredFrames, max_pixels: int | None = None, fps: float = FPS) -> None:
        self.max_pixels = max_pixels
        if isinstance(folder, StoredFrames):
            self.folder, self._open = folder.folder, folder.open
            self._paths = list(folder.paths)
        else:
            self.folder, self._open = folder, str
            self._paths = [os.path.join(folder, name) for name in frame_names(folder)]
        self.times = np.arange(len(self._paths)) / fps
        self.duration = len(self._paths) / fps
        self.size = picture_size(self._open(self._paths[0]))

    def __enter__(self) -> FolderVideo:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is open."""

    def place(self, number: int) -> FramePlace:
        """Returns the place of frame `number`."""
        return FramePlace(Path(self.folder).as_posix(), number, float(self.times[number]))

    def frames(self, places: Sequence[FramePlace]) -> Iterator[Image.Image]:
        """Yields frames, see `mg_llava.videos.open.Video.frames`."""
        for place in places:
            yield open_picture(self._open(self._paths[place.number]), max_pixels=self.max_pixels)


def _natural(name: str) -> tuple[list[tuple[int, int | str]], str]:
    """2.jpg before 10.jpg."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in _DIGITS.split(name) if part], name
