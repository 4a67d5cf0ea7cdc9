"""A video as a model is shown it: the chosen frames, decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from PIL import Image

from mg_llava.boxes.selection import PictureBoxes
from mg_llava.videos.folders import FPS
from mg_llava.videos.open import VideoSource, open_video
from mg_llava.videos.places import FramePlace, read_video_name
from mg_llava.videos.sampling import FrameSampling
from xtuner.errors import XTunerError


@dataclass(frozen=True)
class VideoFrames:
    """The frames of a video, in order of time.

    Attributes:
        pictures: 8-bit RGB, upright, with square pixels.
        places: of each, with its number and time.
        duration: of the video, in seconds.
        repeats: frames that were asked for again and are left out.
        found: boxes of each frame in its own pixels, None for none; empty = none at all.
    """

    pictures: tuple[Image.Image, ...]
    places: tuple[FramePlace, ...]
    duration: float
    repeats: int = 0
    found: tuple[PictureBoxes | None, ...] = ()

    def with_boxes(self, found: Sequence[PictureBoxes | None]) -> VideoFrames:
        """Returns the frames with boxes, one entry a frame.

        Raises:
            XTunerError: another number of entries.
        """
        if len(found) != len(self.pictures):
            raise XTunerError(
                f"{len(found)} lists of boxes for {len(self.pictures)} frames: give one list (or None) for each frame."
            )
        return replace(self, found=tuple(found))

    def shuffled(self, order: Sequence[int]) -> VideoFrames:
        """Returns the frames in another order, to see whether order matters.

        Args:
            order: number of the frame for each place.
        """
        found = tuple(self.found[number] for number in order) if self.found else ()
        pictures = tuple(self.pictures[number] for number in order)
        return replace(self, pictures=pictures, places=tuple(self.places[number] for number in order), found=found)


def read_frames(
    source: VideoSource,
    sampling: FrameSampling | None = None,
    max_pixels: int | None = None,
    name: str | None = None,
    folder_fps: float = FPS,
) -> VideoFrames:
    """Reads the chosen frames of a video.

    Args:
        source: see `open_video`; a path may name a part of the video (``clip.mp4#t=3,12``).
        sampling: which frames; None = 8, spread evenly.
        max_pixels: most pixels of a frame.
        name: of the video, for messages, where `source` is its bytes.
        folder_fps: frames per second of a folder of pictures.

    Raises:
        SampleError: it cannot be read, or has no frames in the range.
        XTunerError: a range that is none, or frames of more than `max_pixels`.
    """
    rule = sampling or FrameSampling()
    if isinstance(source, str):
        source, start, end = read_video_name(source)
        rule = rule.within(start, end)
    with open_video(source, max_pixels, name=name, folder_fps=folder_fps) as video:
        sampled = rule.choose(video.times, video.duration)
        places = tuple(video.place(number) for number in sampled.numbers)
        return VideoFrames(tuple(video.frames(places)), places, video.duration, sampled.repeats)
