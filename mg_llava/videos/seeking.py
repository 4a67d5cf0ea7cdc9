"""Single frames of a stream: decoded forward from the key frame before each, or from where the decoder stands."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from mg_llava.videos.budget import DecodingBudget
from mg_llava.videos.places import FramePlace
from xtuner.errors import SampleError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

SAME_TIME = 1e-3
"""Seconds by which two time stamps of one frame may differ: Matroska's are milliseconds."""
_NEAR = 1.0
"""Seconds up to which decoding on is taken for cheaper than seeking, where the key frames are not known."""
_STEPS_BACK = (0.0, 1.0, 4.0, 16.0, 64.0)
"""Seconds before a frame to which is sought; some files land behind the place that was asked for."""
_MAY_SKIP = ("h264",)
"""Codecs in which a frame that is marked as no reference is none for any other frame."""


class _At(NamedTuple):
    """A decoded frame and its time in seconds."""

    time: float
    frame: VideoFrame


class FrameSeeker:
    """Finds the frames of a stream by their times, best asked for in rising order.

    Args:
        name: how messages call the video.
        container: open.
        stream: of it.
        start: seconds of the stream's own clock at which its first frame stands.
    """

    def __init__(self, name: str, container: InputContainer, stream: VideoStream, start: float) -> None:
        self.name = name
        self.container = container
        self.stream = stream
        self.start = start
        self.base = float(stream.time_base or 1)
        self.skips = stream.codec_context.name in _MAY_SKIP
        self._budget = DecodingBudget(name)
        self._wanted = 0.0
        self._decoded: Iterator[_At] | None = None
        self._shown: _At | None = None
        self._next: _At | None = None

    def at(self, place: FramePlace) -> VideoFrame:
        """Returns the frame that is shown at a place's time.

        Raises:
            SampleError: the stream ends before it, it is damaged, or too many frames lie before it.
        """
        wanted = self._wanted = place.time
        if not self._goes_on_to(wanted):
            self._seek(wanted)
        while self._shown is None or self._shown.time < wanted - SAME_TIME:
            if self._next is None:
                self._next = self._read()
            if self._next is None or (self._shown is not None and self._next.time > wanted + SAME_TIME):
                break
            self._shown, self._next = self._next, None
        shown = self._shown
        if shown is None or (self._next is None and shown.time < wanted - _NEAR):
            reached = "" if shown is None else f" at {shown.time:.2f} s"
            raise SampleError(
                "video does not decode",
                f"{self.name} ends{reached} before its frame {place.number} at {wanted:.2f} s: the file is cut off or "
                "was changed; replace it.",
            )
        if shown.frame.is_corrupt:
            raise SampleError(
                "video does not decode",
                f"{self.name} is damaged at its frame {place.number} at {wanted:.2f} s: replace it.",
            )
        return shown.frame

    def _goes_on_to(self, wanted: float) -> bool:
        """Whether decoding on reaches `wanted` with no more frames than seeking would."""
        if self._shown is None or self._shown.time > wanted + SAME_TIME:
            return False
        now = self._shown.time if self._next is None else self._next.time
        if now >= wanted - SAME_TIME:
            return True
        key = self._key_before(wanted)
        return wanted - now < _NEAR if key is None else key <= now + SAME_TIME

    def _key_before(self, wanted: float) -> float | None:
        """Seconds of the key frame before `wanted`, where the container says them."""
        entries = self.stream.index_entries
        number = entries.search_timestamp(round((wanted + self.start) / self.base), backward=True)
        return None if number < 0 else entries[number].timestamp * self.base - self.start

    def _seek(self, wanted: float) -> None:
        first: _At | None = None
        for back in _STEPS_BACK:
            target = max(wanted - back, 0.0)
            self.container.seek(round((target + self.start) / self.base), backward=True, stream=self.stream)
            self._decoded, self._shown, self._next = self._decode(), None, None
            first = self._read()
            if first is not None and first.time <= wanted + SAME_TIME:
                break
            if target == 0.0:
                break
        self._next = first

    def _read(self) -> _At | None:
        return None if self._decoded is None else next(self._decoded, None)

    def _decode(self) -> Iterator[_At]:
        context = self.stream.codec_context
        for packet in self.container.demux(self.stream):
            if self.skips:
                # what is not shown and no other frame refers to need not be decoded
                context.skip_frame = "NONREF" if self._may_skip(packet.pts) else "DEFAULT"
            for frame in packet.decode():
                self._budget.take(frame.width, frame.height)
                if frame.pts is not None:
                    yield _At(self._time_of(frame.pts), frame)

    def _may_skip(self, stamp: int | None) -> bool:
        """Whether the frame of a packet comes before the wanted one."""
        return stamp is not None and self._time_of(stamp) < self._wanted - SAME_TIME

    def _time_of(self, stamp: int) -> float:
        return stamp * self.base - self.start
