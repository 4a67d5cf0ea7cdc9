"""Pixels of every kind that Pillow holds to 8-bit RGB."""

from __future__ import annotations

import numpy as np
from PIL import Image

from xtuner.errors import SampleError


def to_rgb(image: Image.Image) -> Image.Image:
    """Returns `image` as 8-bit RGB.

    Transparency is dropped (the colour under it counts), 16-bit grey keeps its upper 8 bits, 32-bit grey (whole
    numbers or floats) is scaled from its own least and largest value to 0–255. CMYK and palettes are converted by
    Pillow. Of an animation the frame that is current (the first, after opening) is taken.

    Raises:
        SampleError: the pixels hold NaN or infinite values, or colours that Pillow cannot convert.
    """
    if image.mode == "RGB":
        return image
    if image.mode in ("I", "F") and not _is_16_bit(image):
        return _scaled(image)
    if image.mode.startswith("I"):
        # Pillow would clip 16-bit values at 255 to white
        high_byte = np.clip(np.asarray(image).astype(np.int32) >> 8, 0, 255).astype(np.uint8)
        return Image.fromarray(high_byte).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    try:
        return image.convert("RGB")
    except ValueError as error:
        message = f"a picture of mode '{image.mode}' cannot be converted to RGB ({error}): save it as RGB."
        raise SampleError("picture of another kind", message) from error


def _is_16_bit(image: Image.Image) -> bool:
    """True for a 16-bit PNG that Pillow opened as mode "I", as its older versions do."""
    return image.mode == "I" and image.format == "PNG"


def _scaled(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise SampleError(
            "picture of another kind",
            "the picture's float pixels hold NaN or infinite values: expected finite numbers, or save it with 8 bits.",
        )
    scaled = (values.astype(np.float64) - low) / ((high - low) or 1.0) * 255
    return Image.fromarray(np.rint(scaled).astype(np.uint8)).convert("RGB")
