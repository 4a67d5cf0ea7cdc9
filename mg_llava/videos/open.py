"""Video files to frames: the only door through which a video's bytes come in, whatever they hold."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import IO, Protocol, TypeAlias

import numpy as np
from PIL import Image

from mg_llava.pictures.open import check_file
from mg_llava.videos.animations import AnimatedVideo
from mg_llava.videos.containers import ContainerVideo
from mg_llava.videos.folders import FPS, FolderVideo, StoredFrames
from mg_llava.videos.places import FramePlace
from xtuner.errors import SampleError

VideoSource: TypeAlias = "str | os.PathLike[str] | IO[bytes] | StoredFrames"

NAMES = "MP4, MOV, WebM, Matroska, AVI, GIF or WebP"
_HEAD = 64
_BROKEN = "video does not decode"
_STILLS = {b"\xff\xd8\xff": "a JPEG picture", b"\x89PNG": "a PNG picture", b"BM": "a BMP picture"}
_MOV_ATOMS = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")
_STILL_BRANDS = (b"avif", b"heic", b"heix", b"mif1")


class Video(Protocol):
    """A video that is open.

    Attributes:
        times: (n,) seconds at which each frame appears, rising.
        duration: seconds at which the last one ends.
        size: (width, height) of its frames in pixels, as they are shown.
        codec: for people.
    """

    times: np.ndarray
    duration: float
    size: tuple[int, int]
    codec: str

    def place(self, number: int) -> FramePlace:
        """Returns the place of frame `number`, its video unnamed."""
        ...

    def frames(self, places: Sequence[FramePlace]) -> Iterator[Image.Image]:
        """Yields frames as 8-bit RGB, upright and with square pixels.

        Args:
            places: in order of time; one may stand there several times.

        Raises:
            SampleError: a frame does not decode or is not there.
        """
        ...


def open_video(
    source: VideoSource,
    max_pixels: int | None = None,
    listed: bool = True,
    name: str | None = None,
    folder_fps: float = FPS,
) -> AbstractContextManager[Video]:
    """Opens a video file: only its container is looked at, and of every frame the time.

    Args:
        source: file, or its bytes as an open stream, of MP4, MOV, WebM, Matroska, AVI, or an animated GIF or WebP;
            or a folder of pictures, one a frame, in the order of the numbers in their names.
        max_pixels: most pixels of a frame; None = no bound but `mg_llava.pictures.open.MAX_MEMORY`.
        listed: whether `Video.times` are wanted; without, only what frames at known places need is read.
        name: of the video, for messages, where `source` is its bytes.
        folder_fps: frames per second of a folder of pictures.

    Raises:
        SampleError: the file is missing, is no regular file, no video, holds no frames, or needs more than is allowed.
        XTunerError: its frames have more than `max_pixels`.
    """
    if isinstance(source, StoredFrames):
        return FolderVideo(source, max_pixels, folder_fps)
    if isinstance(source, (str, os.PathLike)):
        path = os.fspath(source)
        if os.path.isdir(path):
            return FolderVideo(path, max_pixels, folder_fps)
        check_file(path, "video")
        called = f"video '{path if name is None else name}'"
        with open(path, "rb") as file:
            kind = _kind_of(file.read(_HEAD), called)
    else:
        called = "the video" if name is None else f"video '{name}'"
        source.seek(0)
        kind = _kind_of(source.read(_HEAD), called)
        source.seek(0)
    if kind == "animation":
        return AnimatedVideo(source, called, max_pixels)
    return ContainerVideo(source, called, kind, max_pixels, listed)


def _kind_of(head: bytes, called: str) -> str:
    """The demuxer for a file that begins with `head`; "animation" for Pillow's.

    Told from the bytes and given by name: of FFmpeg's hundreds of demuxers some open other files and addresses.
    """
    if head[4:8] in _MOV_ATOMS:
        if head[8:12] in _STILL_BRANDS:
            raise _no_video(called, "it is a still picture (AVIF or HEIF)", "write it as 'image'")
        return "mov"
    if head.startswith(b"\x1aE\xdf\xa3"):
        return "matroska"
    if head.startswith(b"RIFF") and head[8:12] == b"AVI ":
        return "avi"
    if head.startswith(b"GIF8") or (head.startswith(b"RIFF") and head[8:12] == b"WEBP"):
        return "animation"
    for mark, kind in _STILLS.items():
        if head.startswith(mark):
            raise _no_video(called, f"it is {kind}", "write it as 'image'")
    found = "it is no file of these" if head else "the file is empty, 0 bytes"
    raise _no_video(called, found, "replace the file or remove its record")


def _no_video(called: str, found: str, advice: str) -> SampleError:
    return SampleError(_BROKEN, f"{called} is no {NAMES} video ({found}): {advice}.")
