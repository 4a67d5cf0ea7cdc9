"""A folder of pictures, one a frame, as a video."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mg_llava.pictures.open import open_picture, picture_size
from mg_llava.videos.places import FramePlace
from xtuner.errors import SampleError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
FPS = 1.0
"""Frames per second of a folder, which does not say: frame i is shown from second i on."""
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


class FolderVideo:
    """Pictures of a folder, a second each.

    Args:
        folder: its path.
        max_pixels: most pixels of a frame.

    Raises:
        SampleError: it holds no pictures.
    """

    codec = "pictures"

    def __init__(self, folder: str, max_pixels: int | None = None) -> None:
        self.folder = folder
        self.max_pixels = max_pixels
        self.names = frame_names(folder)
        self.times = np.arange(len(self.names)) / FPS
        self.duration = len(self.names) / FPS
        self.size = picture_size(os.path.join(folder, self.names[0]))

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
            yield open_picture(os.path.join(self.folder, self.names[place.number]), max_pixels=self.max_pixels)


def _natural(name: str) -> tuple[list[tuple[int, int | str]], str]:
    """2.jpg before 10.jpg."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in _DIGITS.split(name) if part], name
