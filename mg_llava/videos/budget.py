"""What reading one video may cost; refused before the work where it can be known."""

from __future__ import annotations

from mg_llava.pictures.open import MAX_MEMORY
from xtuner.errors import SampleError, XTunerError

MOST_FRAMES = 2_000_000
"""Frames of a video: 18 hours at 30 a second."""
MOST_DECODED = 20_000
"""Frames that are decoded to reach those that are wanted."""
MOST_DECODED_PIXELS = 20_000_000_000
"""Their pixels: 20,000 frames of 1280 x 720, and 600 of 8K."""
_HELD = 18
"""Frames that a decoder holds at a time: 16 to refer to, the one it makes and the one that it hands over."""
_RGB_BYTES = 4


def check_frame_size(
    name: str, size: tuple[int, int], bits_per_pixel: float = 12, max_pixels: int | None = None
) -> None:
    """Refuses frames that are too large, before one is decoded.

    Args:
        name: how messages call the video.
        size: (width, height) of a frame.
        bits_per_pixel: as the decoder stores it.
        max_pixels: most pixels; None = what `MAX_MEMORY` allows.

    Raises:
        SampleError: decoding needs more than `MAX_MEMORY`.
        XTunerError: more than `max_pixels`.
    """
    width, height = size
    pixels = width * height
    if pixels <= 0:
        raise SampleError("video does not decode", f"{name} says no size of its frames: replace the file.")
    if max_pixels is not None and pixels > max_pixels:
        raise XTunerError(
            f"{name} has frames of {width} x {height} = {pixels / 1e6:.1f} megapixels, but at most "
            f"{max_pixels / 1e6:.1f} are allowed: make it smaller, since the model sees far fewer."
        )
    needed = pixels * (_HELD * bits_per_pixel / 8 + _RGB_BYTES)
    if needed > MAX_MEMORY:
        raise SampleError(
            "video too large",
            f"{name} has frames of {width} x {height} pixels; decoding them takes about {needed / 1e9:.1f} GB, but at "
            f"most {MAX_MEMORY / 1e9:.1f} GB is allowed: make it smaller.",
        )


def check_frame_count(name: str, count: int) -> None:
    """Refuses a video of too many frames.

    Raises:
        SampleError: more than `MOST_FRAMES`.
    """
    if count > MOST_FRAMES:
        raise SampleError(
            "video too long", f"{name} has more than {MOST_FRAMES:,} frames: cut it into parts, or lower its rate."
        )


class DecodingBudget:
    """Counts decoded frames.

    Args:
        name: how messages call the video.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.frames = 0
        self.pixels = 0

    def take(self, width: int, height: int) -> None:
        """Counts one more frame.

        Raises:
            SampleError: it is one too many.
        """
        self.frames += 1
        self.pixels += width * height
        if self.frames > MOST_DECODED or self.pixels > MOST_DECODED_PIXELS:
            raise SampleError(
                "video too long",
                f"{self.name} takes more than {self.frames - 1:,} decoded frames of {width} x {height} pixels to reach "
                "the wanted ones: its key frames are too far apart; encode it again with a key frame each second "
                "(ffmpeg -g 30), or ask for fewer frames.",
            )
