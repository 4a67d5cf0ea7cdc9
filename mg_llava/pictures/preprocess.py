"""Pictures and boxes to what the encoders take: the only copy, used by training, evaluation and chat.

In the workers a picture becomes a uint8 square of `image_size` pixels (`ImageProcessor`); on the device that
becomes the two encoders' normalised pixels (`mg_llava.pictures.normalize`). Checked against the published
preprocessing in tests/parity/test_pixels.py. transformers' default (torchvision) CLIP processor differs by up to one
grey level; the arithmetic here is that of its Pillow one.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image

from mg_llava.boxes.selection import clip_boxes, pad_boxes, resize_boxes
from mg_llava.pictures.colors import to_rgb
from mg_llava.pictures.encoder_config import read_token_grid
from mg_llava.pictures.frames import FrameSize, Placement, frame_size, place, sides
from mg_llava.pictures.open import PictureSource, open_picture
from mg_llava.pictures.pooling import FramePooling, ImageTokens
from mg_llava.pictures.shapes import pad_and_resize, resize_and_crop
from mg_llava.pictures.statistics import read_pixel_statistics
from xtuner.registry import build


class ImageProcessor:
    """Pictures of any shape to the square that the encoders see, and boxes with them.

    Steps: pad to a square with the mean colour (where `pad_to_square`), resize with Pillow's bicubic filter
    so that the shorter side has `image_size` pixels, cut the middle square out. Boxes go the same way, are
    rounded to whole pixels (half to even) and cut at the edges. An encoder whose preprocessing does not crop
    (SigLIP) squeezes instead and leaves boxes fractional.

    Args:
        name_or_path: low-resolution encoder: a folder (or hub name) with preprocessor_config.json and
            config.json.
        image_size: side of the square in pixels (768 for the published models). Or (height, width) of a frame that is
            no square: the picture is resized into its middle (`pad_to_square`), cut to its shape, or squeezed.
        pad_to_square: keep the whole picture; otherwise its margins are cut off.
        apply_exif_orientation: turn pictures as their EXIF tag says. Boxes hold for the pixels as they were
            when the boxes were made; the published ones were made without turning.
        low_res_size: side of the low-resolution encoder's pictures in pixels, where it is not its config's own.
        frame_pooling: what the model does to the tokens of videos' frames, or the config node that builds it: here
            they are only counted.

    Attributes:
        statistics: mean, deviation and shape rule of the encoder.
    """

    def __init__(
        self,
        name_or_path: str,
        image_size: FrameSize = 768,
        pad_to_square: bool = True,
        apply_exif_orientation: bool = False,
        low_res_size: FrameSize | None = None,
        frame_pooling: FramePooling | Mapping[str, Any] | None = None,
    ) -> None:
        self.name_or_path = name_or_path
        self.image_size = frame_size(image_size)
        self.pad_to_square = pad_to_square
        self.apply_exif_orientation = apply_exif_orientation
        self.low_res_size = low_res_size
        self.statistics = read_pixel_statistics(name_or_path)
        self.frame_pooling: FramePooling = build(frame_pooling) or FramePooling()

    @cached_property
    def image_tokens(self) -> ImageTokens:
        """Tokens that the low-resolution encoder makes of one picture, class token not counted, and of a frame.

        Raises:
            XTunerError: its config cannot be read, or its grid is smaller than a square of `frame_pooling`.
        """
        return ImageTokens(self.tokens_of_frame(FramePooling()), self.tokens_of_frame(self.frame_pooling))

    @property
    def num_image_tokens(self) -> int:
        """Those of a picture."""
        return self.image_tokens.picture

    def tokens_of_frame(self, pooling: FramePooling) -> int:
        """Returns the tokens of a video's frame under some pooling."""
        return pooling.num_tokens(read_token_grid(self.name_or_path, self.low_res_size))

    def open(self, path: PictureSource) -> Image.Image:
        """Reads a picture's file or bytes as 8-bit RGB; see `mg_llava.pictures.open.open_picture`."""
        return open_picture(path, self.apply_exif_orientation)

    def __call__(self, image: Image.Image, boxes: np.ndarray | None = None) -> tuple[torch.Tensor, np.ndarray]:
        """Returns the square as uint8 (3, S, S) RGB and the boxes that remain as (M, 4) float32 in its frame.

        Args:
            image: of any mode and shape.
            boxes: (N, 4) xyxy in pixels of `image`; None = none.
        """
        if boxes is None:
            boxes = np.zeros((0, 4), np.float32)
        return self.pixels(image), self.map_boxes(boxes, image.size)[0]

    def pixels(self, image: Image.Image) -> torch.Tensor:
        """Returns the square as uint8 (3, S, S) RGB, a view of (S, S, 3) memory: the device puts it in order."""
        image, size = to_rgb(image), self.image_size
        if not isinstance(size, int):
            square = self._place(image.size).draw(image, self.statistics.pad_color)
        elif self.pad_to_square:
            square = pad_and_resize(image, size, self.statistics.pad_color)
        elif self.statistics.crops:
            square = resize_and_crop(image, size, _resized(image.size, size))
        else:
            square = image.resize((size, size), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(square, dtype=np.uint8)).permute(2, 0, 1)

    def map_boxes(self, boxes: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Takes boxes from a picture's frame to the frame of the square.

        Args:
            boxes: (N, 4) float32 xyxy in pixels of the picture.
            size: (width, height) of the picture.

        Returns:
            (M, 4) float32 boxes that remain after cutting at the edges, and (N,) bool which these are.
        """
        width, height = size
        boxes = boxes.astype(np.float32, copy=False)
        if not isinstance(self.image_size, int):
            return clip_boxes(self._place(size).map_boxes(boxes), *reversed(sides(self.image_size)))
        if self.pad_to_square:
            boxes = pad_boxes(boxes, width, height)
            width = height = max(width, height)
        target = (self.image_size, self.image_size)
        if not self.statistics.crops:
            return clip_boxes(resize_boxes(boxes, (width, height), target), *target)
        # one scale for both sides: the longer side of the resized picture is rounded down, boxes do not
        # follow that
        shorter = min(width, height)
        boxes = np.round(resize_boxes(boxes, (shorter, shorter), target))
        left, top = ((side - self.image_size) // 2 for side in _resized((width, height), self.image_size))
        return clip_boxes(boxes - np.array([left, top, left, top], np.float32), *target)

    def _place(self, size: tuple[int, int]) -> Placement:
        """Where a picture of `size` (width, height) lies in a frame that is no square."""
        return place(size, sides(self.image_size), self.pad_to_square, self.statistics.crops)


def _resized(size: tuple[int, int], side: int) -> tuple[int, int]:
    """(width, height) of a picture of `size` whose shorter side is resized to `side`."""
    width, height = size
    longer = int(side * max(size) / min(size))
    return (side, longer) if width <= height else (longer, side)
