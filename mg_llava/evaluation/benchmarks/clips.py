"""A question's video: a picture that becomes its frames when it is asked."""

from __future__ import annotations

import io
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from PIL import Image

from mg_llava.evaluation.benchmarks.records import Picture
from mg_llava.pictures.preprocess import ImageProcessor
from mg_llava.videos import FrameFiles, FrameSampling, read_frames
from mg_llava.videos.folders import FPS, StoredFrames
from xtuner.constants import IMAGE_TOKEN
from xtuner.data.text.templates import Turn
from xtuner.data.text.turns import with_frames as frames_in_turns
from xtuner.errors import XTunerError


@dataclass(frozen=True)
class Clip(Picture):
    """A video in the place of a picture.

    Args:
        key: see `Picture`, as for `path`, a file or a folder of frames.
        sampling: which of its frames are shown.
        files: where it lies, under the path `stored`, where that is no plain file; None = at `path`.
        stored: see `files`.
        folder_fps: frames per second of a folder of frames, which does not say.
        shuffle: shows them in another order, the same each time.
    """

    sampling: FrameSampling = field(default_factory=FrameSampling)
    shuffle: bool = False
    files: FrameFiles | None = field(default=None, compare=False, repr=False)
    stored: str = ""
    folder_fps: float = FPS

    def frames(self) -> list[Picture]:
        """Returns the frames, decoded, each named by its place in the video.

        Raises:
            XTunerError: the video is missing, does not decode, or has no frames in the range.
        """
        shown = read_frames(self._source(), self.sampling, name=self.key, folder_fps=self.folder_fps)
        if self.shuffle:
            order = list(range(len(shown.pictures)))
            random.Random(self.key).shuffle(order)
            shown = shown.shuffled(order)
        return [
            Picture(key=str(place._replace(video=self.key)), decoded=picture)
            for picture, place in zip(shown.pictures, shown.places, strict=True)
        ]

    def content(self) -> bytes:
        """Returns the bytes of the video's file; of a folder of frames those of its first one, as PNG.

        Raises:
            XTunerError: it cannot be read.
        """
        source = self._source()
        if isinstance(source, io.BytesIO):
            return source.getvalue()
        if isinstance(source, StoredFrames) or os.path.isdir(source):
            return self.frames()[0].content()
        try:
            return Path(source).read_bytes()
        except OSError as error:
            raise XTunerError(f"the video '{self.key}' cannot be read: {error}") from error

    def _source(self) -> str | io.BytesIO | StoredFrames:
        return self.path or "" if self.files is None else self.files.video(self.stored)

    def open(self, image_processor: ImageProcessor) -> Image.Image:
        """Returns the first frame that is shown."""
        return self.frames()[0].open(image_processor)


def with_frames(words: str, pictures: Sequence[Picture]) -> tuple[str, list[Picture]]:
    """Returns words and pictures with the frames of each video in its place, one ``<image>`` a frame.

    Args:
        words: with one ``<image>`` for each picture and video.
        pictures: in the order of their places.

    Raises:
        XTunerError: a video cannot be read.
    """
    if not any(isinstance(picture, Clip) for picture in pictures):
        return words, list(pictures)
    shown = [picture.frames() if isinstance(picture, Clip) else [picture] for picture in pictures]
    first, *rest = words.split(IMAGE_TOKEN)
    places = (IMAGE_TOKEN * len(frames) + text for frames, text in zip(shown, rest, strict=True))
    return first + "".join(places), list(chain.from_iterable(shown))


def turns_with_frames(turns: Sequence[Turn], pictures: Sequence[Picture]) -> tuple[tuple[Turn, ...], list[Picture]]:
    """Returns a conversation and its pictures with the frames of each video in its place.

    Args:
        turns: with `Place.PICTURE` and `Place.VIDEO`.
        pictures: pictures and videos, in the order of their places.

    Raises:
        XTunerError: a video cannot be read.
    """
    shown = [picture.frames() if isinstance(picture, Clip) else [picture] for picture in pictures]
    counts = [len(frames) for frames, picture in zip(shown, pictures, strict=True) if isinstance(picture, Clip)]
    return frames_in_turns(turns, counts), list(chain.from_iterable(shown))
