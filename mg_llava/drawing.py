"""Pictures with their boxes and labels drawn in, for people."""

from __future__ import annotations

import colorsys
import zlib

import torch
from PIL import Image, ImageDraw

from mg_llava.boxes import PictureBoxes


def draw_boxes(pixels: torch.Tensor, found: PictureBoxes) -> Image.Image:
    """Returns a picture with boxes.

    Args:
        pixels: (S, S, 3) uint8 RGB.
        found: boxes in pixels of the S x S frame; a label always has the same colour.
    """
    image = Image.fromarray(pixels.contiguous().numpy())
    draw = ImageDraw.Draw(image)
    # the surest last, on top
    for box, label, score in list(zip(found.boxes.tolist(), found.labels, found.scores.tolist(), strict=True))[::-1]:
        hue = zlib.crc32(label.encode()) % 360 / 360
        red, green, blue = (int(255 * part) for part in colorsys.hsv_to_rgb(hue, 1, 1))
        draw.rectangle(box, outline=(red, green, blue), width=2)
        text = f"{label} {score:.2f}"
        left, top, right, bottom = draw.textbbox((box[0] + 2, box[1] + 1), text)
        draw.rectangle((left - 1, top, right + 1, bottom), fill=(0, 0, 0))
        draw.text((box[0] + 2, box[1] + 1), text, fill=(red, green, blue))
    return image
