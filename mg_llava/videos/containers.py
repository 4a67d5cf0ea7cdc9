"""MP4, Matroska, WebM and AVI through PyAV: time stamps without decoding, and frames with no more than they need."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

import numpy as np
from PIL import Image

from mg_llava.videos.budget import check_frame_count, check_frame_size
from mg_llava.videos.colors import bits_per_pixel, frame_to_rgb, shown_size
from mg_llava.videos.places import FramePlace
from mg_llava.videos.seeking import FrameSeeker
from xtuner.errors import SampleError, XTunerError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.codeccontext import VideoCodecContext
    from av.video.stream import VideoStream

_BROKEN = "video does not decode"


class ContainerVideo:
    """The first video stream of a file; sound and all other streams are left alone.

    Args:
        source: file or its bytes.
        name: how messages call it.
        demuxer: FFmpeg's name for the kind of file.
        max_pixels: most pixels of a frame.
        listed: whether `times` are wanted.

    Raises:
        SampleError: the file does not open, has no video stream or no frames, or needs more than is allowed.
        XTunerError: more than `max_pixels`.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | IO[bytes],
        name: str,
        demuxer: str,
        max_pixels: int | None = None,
        listed: bool = True,
    ) -> None:
        self.name = name
        self._file: IO[bytes] = open(source, "rb") if isinstance(source, (str, os.PathLike)) else source
        self._is_own = self._file is not source
        self._container: InputContainer | None = None
        try:
            with self._telling("cannot be opened"):
                self._open(demuxer, max_pixels)
                self.times = self._list_times() if listed else np.zeros(0)
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> ContainerVideo:
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the file, where it was opened here."""
        if self._container is not None:
            self._container.close()
        if self._is_own:
            self._file.close()

    def place(self, number: int) -> FramePlace:
        """Returns the place of frame `number`."""
        return FramePlace(self.name, number, max(round(float(self.times[number]), 6), 0.0))

    def frames(self, places: Sequence[FramePlace]) -> Iterator[Image.Image]:
        """Yields frames, see `mg_llava.videos.open.Video.frames`."""
        with self._telling("does not decode"):
            assert self._container is not None
            seeker = FrameSeeker(self.name, self._container, self._stream, self._start)
            last: tuple[float, Image.Image] | None = None
            for place in places:
                if last is None or last[0] != place.time:
                    frame = seeker.at(place)
                    last = (place.time, frame_to_rgb(frame, self._aspect, self.name))
                yield last[1]

    def _open(self, demuxer: str, max_pixels: int | None) -> None:
        import av
        from av.stream import Discard

        # by its own demuxer, from its own bytes: neither may name another file or address
        options = {"protocol_whitelist": "", "enable_drefs": "0"}
        container = av.open(self._file, mode="r", format=demuxer, options=options)
        self._container = container
        streams = [stream for stream in container.streams.video if not _is_cover(stream)]
        if not streams:
            raise SampleError(_BROKEN, f"{self.name} has no video stream, only sound or text: replace the file.")
        self._stream: VideoStream = streams[0]
        for other in container.streams:
            if other is not self._stream:
                other.discard = Discard.all
        # an unknown codec has none, whatever the stubs say
        context: VideoCodecContext | None = self._stream.codec_context
        if context is None:
            raise SampleError(_BROKEN, f"{self.name} is of a codec that FFmpeg does not know: encode it as H.264.")
        # of one thread: its workers share the cores already, and threads hold more frames
        context.thread_count = 1
        self.codec = context.name
        self._aspect = self._stream.sample_aspect_ratio
        self.size = shown_size((context.width, context.height), self._aspect)
        check_frame_size(self.name, self.size, bits_per_pixel(context.format), max_pixels)
        base = self._stream.time_base
        assert base is not None
        self._start = float((self._stream.start_time or 0) * base)

    def _list_times(self) -> np.ndarray:
        """Seconds of all frames, from the container alone."""
        stamps = self._from_index()
        if stamps is None:
            stamps = self._from_packets()
        if not len(stamps):
            raise SampleError("video without frames", f"{self.name} holds no frames, 0 of them: replace the file.")
        assert self._stream.time_base is not None
        times = np.sort(stamps) * float(self._stream.time_base) - self._start
        step = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else self._frame_seconds()
        self.duration = float(times[-1] + step)
        return times

    def _frame_seconds(self) -> float:
        rate = self._stream.average_rate
        return 1.0 / float(rate) if rate else 1.0

    def _from_index(self) -> np.ndarray | None:
        """The time stamps of an MP4's table, without reading the frames; None where it does not say them.

        The table has the times of decoding. Of frames that are the same time apart these are the times of showing,
        moved to the first one.
        """
        assert self._container is not None
        if not self._container.format.name.startswith("mov"):
            return None
        check_frame_count(self.name, self._stream.frames)
        stamps = np.array(
            [entry.timestamp for entry in self._stream.index_entries if not entry.is_discard], dtype=np.int64
        )
        if len(stamps) < 2 or len(stamps) != self._stream.frames:
            return None
        steps = np.diff(stamps)
        if (steps != steps[0]).any():
            return None
        return stamps - stamps[0] + (self._stream.start_time or 0)

    def _from_packets(self) -> np.ndarray:
        """The time stamps of all packets, which are read for it."""
        assert self._container is not None
        stamps: list[int] = []
        for packet in self._container.demux(self._stream):
            stamp = packet.dts if packet.pts is None else packet.pts
            # the last packet is empty and only ends the stream
            if stamp is None or not packet.size or packet.is_discard:
                continue
            stamps.append(stamp)
            if len(stamps) % 10_000 == 0:
                check_frame_count(self.name, len(stamps))
        return np.array(stamps, dtype=np.int64)

    @contextmanager
    def _telling(self, what: str) -> Iterator[None]:
        """Every failure of FFmpeg's names the video."""
        import av

        try:
            yield
        except XTunerError:
            raise
        except MemoryError as error:
            raise SampleError("out of memory", f"there is not enough memory to decode {self.name}.") from error
        except av.error.FFmpegError as error:
            reason = (error.strerror or type(error).__name__).lower()
            raise SampleError(
                _BROKEN, f"{self.name} {what} ({reason}): the file is damaged or cut off; replace it."
            ) from error
        except (OSError, ValueError, AssertionError) as error:
            raise SampleError(_BROKEN, f"{self.name} {what} ({error}): replace the file.") from error


def _is_cover(stream: VideoStream) -> bool:
    """A picture of the cover, which MP4 and Matroska hold as a stream."""
    import av

    return bool(stream.disposition & av.stream.Disposition.attached_pic)
