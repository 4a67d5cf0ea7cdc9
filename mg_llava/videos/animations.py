"""Animated GIF and WebP as videos; Pillow reads them, through the same limits as pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageSequence

from mg_llava.pictures.colors import to_rgb
from mg_llava.pictures.open import PictureSource, check_size, opened
from mg_llava.videos.budget import DecodingBudget, check_frame_count
from mg_llava.videos.places import FramePlace
from xtuner.errors import SampleError

_SHORTEST = 0.02
_INSTEAD = 0.1
"""Seconds that a frame is shown which says less than `_SHORTEST`, as in browsers."""


class AnimatedVideo:
    """An animation. Its frames build on each other, so they are decoded from the first to the last that is wanted.

    Args:
        source: file or its bytes.
        name: how messages call it.
        max_pixels: most pixels of a frame.

    Raises:
        SampleError: it does not decode, is too large, or stands still.
        XTunerError: more than `max_pixels`.
    """

    def __init__(self, source: PictureSource, name: str, max_pixels: int | None = None) -> None:
        self.source = source
        self.name = name
        with self._opened() as image:
            check_size(source, image, max_pixels)
            self.size = image.size
            self.codec = str(image.format)
            check_frame_count(name, int(getattr(image, "n_frames", 1)))
            shown = [_seconds(frame.info) for frame in self._decoded(image)]
        self.times = np.cumsum([0.0, *shown[:-1]])
        self.duration = float(sum(shown))

    def __enter__(self) -> AnimatedVideo:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing stays open."""

    def place(self, number: int) -> FramePlace:
        """Returns the place of frame `number`."""
        return FramePlace(self.name, number, float(self.times[number]))

    def frames(self, places: Sequence[FramePlace]) -> Iterator[Image.Image]:
        """Yields frames, see `mg_llava.videos.open.Video.frames`."""
        rest = list(places)
        with self._opened() as image:
            for number, frame in enumerate(self._decoded(image)):
                while rest and rest[0].number == number:
                    rest.pop(0)
                    yield to_rgb(frame.copy())
                if not rest:
                    return
        if rest:
            raise SampleError(
                "video does not decode",
                f"{self.name} has no frame {rest[0].number}: it changed since it was looked at.",
            )

    def _opened(self) -> Any:
        if not isinstance(self.source, str) and hasattr(self.source, "seek"):
            self.source.seek(0)
        return opened(self.source)

    def _decoded(self, image: Image.Image) -> Iterator[Image.Image]:
        budget = DecodingBudget(self.name)
        for frame in ImageSequence.Iterator(image):
            budget.take(*image.size)
            frame.load()
            yield frame


def _seconds(info: dict[Any, Any]) -> float:
    seconds = float(info.get("duration") or 0) / 1000
    return seconds if seconds >= _SHORTEST else _INSTEAD
