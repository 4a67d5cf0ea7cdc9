"""Where a frame stands, as a text that takes a picture's path: ``video:clips/a.mp4#frame=97,t=3.233333``."""

from __future__ import annotations

import re
from typing import NamedTuple

from mg_llava.videos.sampling import check_range
from xtuner.errors import XTunerError

SCHEME = "video:"
_UNREAD = "unread"
_SPOT = re.compile(r"frame=(\d{1,10}),t=(\d{1,10}(?:\.\d{1,6})?)")
_FRAGMENT = re.compile(r"(.+)#t=([^#,]*)(?:,([^#,]*))?", re.S)


class FramePlace(NamedTuple):
    """A frame of a video.

    Attributes:
        video: its path, or its place in a data source.
        number: of the frame, from 0; below that of a video that could not be read when frames were chosen.
        time: seconds from the beginning of the stream, to the microsecond.
    """

    video: str
    number: int
    time: float

    @classmethod
    def unread(cls, video: str) -> FramePlace:
        """Returns what stands for a video that cannot be read."""
        return cls(video, -1, 0.0)

    @property
    def is_unread(self) -> bool:
        """Whether the video could not be read."""
        return self.number < 0

    def __str__(self) -> str:
        if self.is_unread:
            return f"{SCHEME}{self.video}#{_UNREAD}"
        return f"{SCHEME}{self.video}#frame={self.number},t={self.time:.6f}"

    @property
    def words(self) -> str:
        """How people read it."""
        return f"frame {self.number} ({self.time:.2f} s) of '{self.video}'"


def read_frame_place(text: str) -> FramePlace | None:
    """Returns the place that a text gives; None for another text."""
    if not text.startswith(SCHEME):
        return None
    video, _, spot = text.removeprefix(SCHEME).rpartition("#")
    if spot == _UNREAD and video:
        return FramePlace.unread(video)
    found = _SPOT.fullmatch(spot)
    return FramePlace(video, int(found[1]), float(found[2])) if found and video else None


class VideoName(NamedTuple):
    """A video as a record or a message names it: ``clips/a.mp4``, or a part of it, ``clips/a.mp4#t=3,12.5``.

    Attributes:
        path: of the file or the folder of frames.
        start: seconds from which on it is meant; None = its beginning.
        end: seconds up to which it is meant; None = its end.
    """

    path: str
    start: float | None = None
    end: float | None = None


def read_video_name(text: str) -> VideoName:
    """Reads a video's path with its range of time, written as a media fragment (``#t=START,END``).

    Raises:
        XTunerError: the range is no range.
    """
    found = _FRAGMENT.fullmatch(text)
    if found is None:
        return VideoName(text)
    path, start, end = found[1], _seconds(found[2], text), _seconds(found[3], text)
    try:
        check_range(start or 0.0, end)
    except XTunerError as error:
        raise XTunerError(f"video '{text}': {error}") from error
    return VideoName(path, start, end)


def _seconds(text: str | None, where: str) -> float | None:
    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        raise XTunerError(
            f"video '{where}': the range is {text!r}, expected seconds: PATH#t=START,END, e.g. clip.mp4#t=3,12.5."
        ) from None
