"""Which frames of a video are looked at: pure functions of their time stamps."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from xtuner.errors import SampleError, XTunerError

PUBLISHED_FRAMES = 8
MOST_SAMPLED = 1024
"""Frames of one video, whatever the settings say."""
_HIGHEST_RATE = 1000
_SAME_TIME = 1e-3
"""Seconds by which time stamps are rounded in files (Matroska writes milliseconds)."""


class Sampled(NamedTuple):
    """The frames chosen of a video.

    Attributes:
        numbers: of the frames, from 0, in order of time.
        repeats: frames that were asked for again and are left out.
    """

    numbers: list[int]
    repeats: int


@dataclass(frozen=True)
class FrameSampling:
    """Which frames of a video become pictures.

    Either `num_frames` frames spread evenly from the first to the last, or `fps` frames per second. The frame at a time
    is the one that is shown then, so frames of a variable rate count by their time stamps; at a constant rate frames i
    are ``linspace(0, frames - 1, num_frames)`` truncated to whole numbers, as published.

    Args:
        num_frames: frames of a video; None = 8, where `fps` is not given either.
        fps: frames per second instead.
        max_frames: most frames that `fps` gives; of more, that many spread evenly.
        start: seconds from the beginning, from which on the video counts.
        end: seconds up to which it counts; None = its end.
        repeat: the published rule in videos of fewer frames than asked: frames by their number, some several times. By
            default each frame is shown once.

    Raises:
        XTunerError: a value out of its range, an empty range of time, or both `num_frames` and `fps`.

    Examples:
        >>> FrameSampling(num_frames=4).choose(np.arange(10) / 25).numbers
        [0, 3, 6, 9]
        >>> FrameSampling(num_frames=4, repeat=True).choose(np.arange(3) / 25).numbers
        [0, 0, 1, 2]
        >>> FrameSampling(fps=2, start=1, end=2).choose(np.arange(100) / 25).numbers
        [25, 37]
    """

    num_frames: int | None = None
    fps: float | None = None
    max_frames: int = 64
    start: float = 0.0
    end: float | None = None
    repeat: bool = False

    def __post_init__(self) -> None:
        if self.num_frames is not None and self.fps is not None:
            raise XTunerError(f"num_frames={self.num_frames} and fps={self.fps}: give one of them.")
        for name, value in (("num_frames", self.num_frames), ("max_frames", self.max_frames)):
            if value is not None and not (isinstance(value, int) and 1 <= value <= MOST_SAMPLED):
                raise XTunerError(f"{name}={value!r}: expected a whole number from 1 to {MOST_SAMPLED:,}.")
        if self.fps is not None and not (_is_number(self.fps) and 0 < self.fps <= _HIGHEST_RATE):
            raise XTunerError(f"fps={self.fps!r}: expected a number above 0, at most {_HIGHEST_RATE:,}.")
        check_range(self.start, self.end)

    @property
    def count(self) -> int | None:
        """Frames asked for; None where the length of the video decides."""
        return None if self.fps is not None else self.num_frames or PUBLISHED_FRAMES

    def within(self, start: float | None, end: float | None) -> FrameSampling:
        """Returns the same rule for another range of time; None = this rule's own bound.

        Raises:
            XTunerError: the range is empty.
        """
        first = self.start if start is None else start
        return replace(self, start=first, end=self.end if end is None else end)

    def choose(self, times: np.ndarray, duration: float | None = None) -> Sampled:
        """Chooses among the frames of a video.

        Args:
            times: (n,) seconds from the beginning at which each frame appears, rising.
            duration: seconds at which the last frame ends; None = as long after it as frames are apart on average.

        Raises:
            SampleError: there is no frame in the range.
        """
        times = np.asarray(times, np.float64)
        ends = _end_of(times) if duration is None else duration
        low, high = self._bounds(times, ends)
        if self.fps is not None:
            wanted = self._by_rate(times, low, min(ends, math.inf if self.end is None else self.end))
        else:
            wanted = self._by_number(times[low:high], self.count or PUBLISHED_FRAMES) + low
        if self.repeat:
            return Sampled(wanted.tolist(), 0)
        numbers = np.unique(wanted)
        return Sampled(numbers.tolist(), len(wanted) - len(numbers))

    def _bounds(self, times: np.ndarray, ends: float) -> tuple[int, int]:
        """The first frame that is shown in the range, and the first one after it."""
        if not len(times):
            raise SampleError("video without frames", "the video holds no frames: replace the file.")
        low = max(int(np.searchsorted(times, self.start + _SAME_TIME, "right")) - 1, 0)
        high = len(times) if self.end is None else int(np.searchsorted(times, self.end - _SAME_TIME, "left"))
        if self.start >= ends or high <= low:
            span = f"from {self.start:g} s on" if self.end is None else f"from {self.start:g} to {self.end:g} s"
            raise SampleError(
                "no frames in the range",
                f"the video has no frames {span}: it ends at {ends:.2f} s; choose another range.",
            )
        return low, high

    def _by_number(self, times: np.ndarray, count: int) -> np.ndarray:
        by_index = np.linspace(0, len(times) - 1, count).astype(np.int64)
        if self.repeat or is_constant(times):
            return by_index
        moments = np.linspace(times[0], times[-1], count)
        return np.searchsorted(times, moments + _SAME_TIME, "right") - 1

    def _by_rate(self, times: np.ndarray, low: int, end: float) -> np.ndarray:
        assert self.fps is not None
        start = max(self.start, float(times[low]))
        ticks = max(1, math.ceil((end - start) * self.fps - _SAME_TIME))
        count = min(ticks, self.max_frames)
        # of more ticks than are wanted these, without making them all
        chosen = np.linspace(0, ticks - 1, count).astype(np.int64)
        return np.searchsorted(times, start + chosen / self.fps + _SAME_TIME, "right") - 1


def check_range(start: float, end: float | None) -> None:
    """Refuses what is no range of time.

    Raises:
        XTunerError: it is negative or empty.
    """
    if not _is_number(start) or start < 0:
        raise XTunerError(f"start={start!r}: expected seconds from the beginning of the video, 0 or more.")
    if end is not None and (not _is_number(end) or end <= start):
        raise XTunerError(f"the range from {start!r} to {end!r} s is empty: expected an end after its start, or None.")


def is_constant(times: np.ndarray) -> bool:
    """Says whether frames are the same time apart, but for the rounding of time stamps: less than half a frame."""
    if len(times) < 3:
        return True
    step = (times[-1] - times[0]) / (len(times) - 1)
    regular = times[0] + step * np.arange(len(times))
    return bool(np.abs(times - regular).max() < step / 2)


def _end_of(times: np.ndarray) -> float:
    if len(times) < 2:
        return float(times[-1]) + 1.0 if len(times) else 0.0
    return float(times[-1] + (times[-1] - times[0]) / (len(times) - 1))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
