"""Picture files to 8-bit RGB, whatever they hold."""

from __future__ import annotations

import os
from typing import IO, TypeAlias

import numpy as np
from PIL import Image, ImageOps

from xtuner.errors import SampleError

_BROKEN = "picture does not decode"

PictureSource: TypeAlias = "str | os.PathLike[str] | IO[bytes]"

_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
"""What Pillow raises for a broken file, by format; `OSError` includes `UnidentifiedImageError`."""


def to_rgb(image: Image.Image) -> Image.Image:
    """Returns `image` as 8-bit RGB.

    Transparency is dropped (the colour under it counts), 16-bit grey keeps its upper 8 bits, CMYK and
    palettes are converted by Pillow, of an animation the frame that is current (the first, after opening) is
    taken.
    """
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):
        # Pillow would clip 16-bit values at 255 to white; mode "I" is how older versions read 16-bit PNG
        high_byte = np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255).astype(np.uint8)
        return Image.fromarray(high_byte, mode="L").convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def open_picture(path: PictureSource, apply_exif_orientation: bool = False) -> Image.Image:
    """Reads a picture file as 8-bit RGB.

    Args:
        path: file, or its bytes as an open stream: JPEG, PNG, WebP, GIF (first frame) or anything else that
            Pillow reads.
        apply_exif_orientation: turn the picture as its EXIF tag says. Boxes hold for the pixels as they were
            when the boxes were made, and the published ones were made without turning; so the default leaves
            the pixels as stored.

    Raises:
        SampleError: the file is missing or does not decode.
    """
    try:
        with Image.open(path) as image:
            image.load()
            return to_rgb(ImageOps.exif_transpose(image) if apply_exif_orientation else image)
    except _DECODE_ERRORS as error:
        raise _read_error(path, error) from error


def picture_size(path: PictureSource, apply_exif_orientation: bool = False) -> tuple[int, int]:
    """Returns (width, height) in pixels from the file's header alone.

    Raises:
        SampleError: the file is missing or is no picture.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = apply_exif_orientation and image.getexif().get(0x0112, 1) >= 5
            return (height, width) if turned else (width, height)
    except _DECODE_ERRORS as error:
        raise _read_error(path, error) from error


def _read_error(source: PictureSource, error: BaseException) -> SampleError:
    reason = str(error) or type(error).__name__
    if not isinstance(source, (str, os.PathLike)):
        return SampleError(_BROKEN, f"the picture's bytes do not decode ({reason}): expected a PNG or JPEG file.")
    path = os.fspath(source)
    if not os.path.exists(path):
        message = f"picture '{path}' does not exist: check image_folder and the record's 'image'."
        return SampleError("missing picture", message)
    return SampleError(_BROKEN, f"picture '{path}' does not decode ({reason}): replace the file or remove its record.")
