"""What transformers' users give as a picture: one that is open, a path, an address, base64 text or bytes."""

from __future__ import annotations

import io
import os
from typing import Any

import numpy as np
from PIL import Image

from mg_llava.pictures.colors import to_rgb
from mg_llava.pictures.open import open_base64, open_picture
from mg_llava.pictures.remote import fetch
from xtuner.errors import XTunerError

_MOST_BYTES = 64 << 20
_LONGEST_PATH = 4096


def read_source(source: Any, apply_exif_orientation: bool = False) -> Image.Image:
    """Returns a picture as 8-bit RGB, by the one door that all pictures come through.

    Args:
        source: a Pillow picture, an array (H, W, 3) or (H, W) of bytes, a path, a ``file://`` or ``http(s)://``
            address, a ``data:`` URL, base64 text, or the bytes of a file.
        apply_exif_orientation: see `open_picture`.

    Raises:
        XTunerError: it is none of these, or does not decode.
    """
    if isinstance(source, Image.Image):
        return to_rgb(source)
    if isinstance(source, np.ndarray) and source.dtype == np.uint8:
        return to_rgb(Image.fromarray(source))
    if isinstance(source, bytes):
        return open_picture(io.BytesIO(source), apply_exif_orientation)
    if isinstance(source, os.PathLike):
        return open_picture(source, apply_exif_orientation)
    if not isinstance(source, str):
        raise XTunerError(
            f"a picture is a {type(source).__name__}: expected a Pillow picture, a path, an address or base64 text."
        )
    if source.startswith(("http://", "https://")):
        return open_picture(io.BytesIO(fetch(source, _MOST_BYTES)), apply_exif_orientation)
    if source.startswith("data:"):
        return open_base64(source.partition(",")[2], apply_exif_orientation, strict=True)
    path = source.removeprefix("file://")
    if len(path) < _LONGEST_PATH and os.path.exists(path):
        return open_picture(path, apply_exif_orientation)
    try:
        return open_base64(source, apply_exif_orientation, strict=True)
    except XTunerError as error:
        raise XTunerError(
            f"the picture {source[:60]!r} is no file and no base64 text of one: check the path ({error})"
        ) from error
