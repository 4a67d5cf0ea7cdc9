"""A question's video: a picture that becomes its frames when it is asked."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain

from PIL import Image

from mg_llava.evaluation.benchmarks.records import Picture
from mg_llava.pictures.preprocess import ImageProcessor
from mg_llava.videos import FrameSampling, read_frames
from xtuner.constants import IMAGE_TOKEN


@dataclass(frozen=True)
class Clip(Picture):
    """A video in the place of a picture.

    Args:
        key: see `Picture`, as for `path`, a file or a folder of frames.
        sampling: which of its frames are shown.
        shuffle: shows them in another order, the same each time.
    """

    sampling: FrameSampling = field(default_factory=FrameSampling)
    shuffle: bool = False

    def frames(self) -> list[Picture]:
        """Returns the frames, decoded, each named by its place in the video.

        Raises:
            XTunerError: the video is missing, does not decode, or has no frames in the range.
        """
        shown = read_frames(self.path or "", self.sampling, name=self.key)
        if self.shuffle:
            order = list(range(len(shown.pictures)))
            random.Random(self.key).shuffle(order)
            shown = shown.shuffled(order)
        return [
            Picture(key=str(place._replace(video=self.key)), decoded=picture)
            for picture, place in zip(shown.pictures, shown.places, strict=True)
        ]

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
