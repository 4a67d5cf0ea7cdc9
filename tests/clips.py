"""Tiny video files, written by PyAV: frame i is one colour, its red 8 * i, so that a frame says its own number."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

RED_STEP = 8
TICKS = 12_000
"""Of a second, in the encoder's clock."""


def frame_picture(number: int, size: tuple[int, int] = (32, 24)) -> np.ndarray:
    """(H, W, 3) uint8: one colour, and a white square in the upper left corner."""
    picture = np.zeros((size[1], size[0], 3), np.uint8)
    picture[:] = (RED_STEP * number % 256, 60, 120)
    picture[: size[1] // 4, : size[0] // 4] = 255
    return picture


def number_of(picture: Image.Image) -> int:
    """The number of the frame that a decoded picture is."""
    red = np.asarray(picture)[picture.height // 2, picture.width // 2, 0]
    return round(float(red) / RED_STEP)


def write_clip(
    path: Path,
    count: int = 16,
    fps: float = 8,
    size: tuple[int, int] = (32, 24),
    codec: str = "libx264",
    times: Sequence[float] | None = None,
    pixels: str = "yuv420p",
    aspect: Fraction | None = None,
    rotation: int | None = None,
    sound: bool = False,
    **options: str,
) -> Path:
    """Writes a clip of `count` frames, at `fps` or at given seconds; the suffix says the container."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1000))
        stream.width, stream.height = size
        stream.pix_fmt = pixels
        stream.options = options
        stream.codec_context.bit_rate = 2_000_000
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if rotation is not None:
            stream.set_display_rotation(rotation)
        if path.suffix != ".avi":
            stream.codec_context.time_base = Fraction(1, TICKS)
        audio: Any = container.add_stream("aac", rate=8000) if sound else None
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(frame_picture(number, size), "rgb24")
            second = number / fps if times is None else times[number]
            frame.pts = number if path.suffix == ".avi" else round(second * TICKS)
            frame.time_base = Fraction(1, int(fps)) if path.suffix == ".avi" else Fraction(1, TICKS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if audio is not None:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            silence.sample_rate = 8000
            container.mux(audio.encode(silence))
            container.mux(audio.encode(None))
    return path


def write_animation(path: Path, count: int = 6, milliseconds: int = 100, size: tuple[int, int] = (32, 24)) -> Path:
    """Writes an animated GIF or WebP."""
    path.parent.mkdir(parents=True, exist_ok=True)
    first, *others = [Image.fromarray(frame_picture(number, size)) for number in range(count)]
    more = {"lossless": True} if path.suffix == ".webp" else {}
    first.save(path, save_all=True, append_images=others, duration=milliseconds, loop=0, **more)
    return path


def write_frames(folder: Path, count: int = 12, size: tuple[int, int] = (32, 24)) -> Path:
    """Writes a folder of frames: 1.png, 2.png, ..., whose order by letters is another one."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.fromarray(frame_picture(number, size)).save(folder / f"{number + 1}.png")
    return folder
