"""Frames that encoders see: their two sides, and where a picture of any shape lies in one that is no square."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from xtuner.errors import XTunerError

FrameSize = int | Sequence[int]
"""Pixels along each side of a square, or (height, width)."""
_SIDES = 2
Region = tuple[float, float, float, float]


def sides(size: FrameSize) -> tuple[int, int]:
    """Returns (height, width) in pixels.

    Raises:
        XTunerError: no whole numbers above zero.
    """
    both = (size, size) if isinstance(size, int) else tuple(size)
    if len(both) != _SIDES or not all(isinstance(side, int) and side > 0 for side in both):
        raise XTunerError(
            f"image_size={size!r}: expected the side of the encoders' picture in pixels, e.g. 768, or its height and "
            "width, e.g. [768, 1152]."
        )
    return both[0], both[1]


def frame_size(size: FrameSize) -> FrameSize:
    """Returns the side of a square, else (height, width)."""
    height, width = sides(size)
    return height if height == width else (height, width)


def size_words(size: FrameSize) -> str:
    """Returns a size as a message has it: ``768``, or ``768 x 1152`` (height x width)."""
    size = frame_size(size)
    return str(size) if isinstance(size, int) else " x ".join(map(str, size))


@dataclass(frozen=True)
class Placement:
    """Which region of a picture is resized to which region of a frame.

    Attributes:
        source: (left, top, right, bottom) in the picture, in pixels.
        target: the same in the frame, whole pixels.
        frame: (height, width) of the frame.
    """

    source: Region
    target: tuple[int, int, int, int]
    frame: tuple[int, int]

    def draw(self, image: Image.Image, color: tuple[int, int, int]) -> Image.Image:
        """Returns the frame with the picture in it, bicubic; what it does not cover is `color`."""
        height, width = self.frame
        left, top, right, bottom = self.target
        resized = image.resize((right - left, bottom - top), Image.Resampling.BICUBIC, box=self.source)
        if resized.size == (width, height):
            return resized
        canvas = Image.new("RGB", (width, height), color)
        canvas.paste(resized, (left, top))
        return canvas

    def map_boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Takes (N, 4) xyxy boxes from the picture to the frame; they may reach beyond it."""
        source, target = np.array(self.source), np.array(self.target)
        scale = (target[2:] - target[:2]) / (source[2:] - source[:2])
        corners = (boxes.reshape(-1, 2, 2) - source[:2]) * scale + target[:2]
        return corners.reshape(-1, 4).astype(np.float32)


def place(size: tuple[int, int], frame: tuple[int, int], pad: bool, crop: bool) -> Placement:
    """Returns how a picture comes into a frame.

    Args:
        size: (width, height) of the picture.
        frame: (height, width).
        pad: the whole picture, in the middle, its shape kept.
        crop: its middle, as much as has the frame's shape. Neither: the whole picture, squeezed.
    """
    (width, height), (rows, columns) = size, frame
    whole = (0.0, 0.0, float(width), float(height))
    if pad:
        scale = min(columns / width, rows / height)
        shown = min(columns, max(1, round(width * scale))), min(rows, max(1, round(height * scale)))
        left, top = (columns - shown[0]) // 2, (rows - shown[1]) // 2
        return Placement(whole, (left, top, left + shown[0], top + shown[1]), frame)
    if crop:
        scale = min(width / columns, height / rows)
        cut = ((width - columns * scale) / 2, (height - rows * scale) / 2)
        end = (min(width, cut[0] + columns * scale), min(height, cut[1] + rows * scale))
        return Placement((*cut, *end), (0, 0, columns, rows), frame)
    return Placement(whole, (0, 0, columns, rows), frame)
