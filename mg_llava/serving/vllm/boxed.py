"""Pictures with boxes as requests give them to vLLM: three ways, one form. Imports nothing of vLLM.

A picture's boxes come beside it (``{"image": picture, "boxes": boxes}``), with those of all pictures in the request's
``mm_processor_kwargs`` (``{"boxes": [...]}``), or in its URL after ``#boxes=``, as JSON.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import unquote

import numpy as np
from PIL import Image

from mg_llava.boxes.selection import PictureBoxes
from mg_llava.boxes.urls import FRAGMENT
from mg_llava.inference.prompts import as_picture_boxes, boxes_per_picture
from mg_llava.serving.vllm.prepared import PreparedPicture
from xtuner.errors import XTunerError, counted, nearest

_KEYS = ("image", "boxes")
_OPTION = "boxes"


@dataclass(frozen=True)
class BoxedPicture:
    """A picture of a request.

    Attributes:
        source: the open picture, an array of bytes (H, W, 3), a file's bytes, or what holds these as
            ``original_bytes``, as vLLM's loader returns; None = a picture that vLLM has kept under a name.
        found: its boxes in its own frame; None = none were given.
    """

    source: Any
    found: PictureBoxes | None = None

    @classmethod
    def read(cls, value: Any) -> BoxedPicture:
        """Reads a picture in any of the forms of a request; one that was read stays as it is.

        Raises:
            XTunerError: no picture, no boxes, or boxes that are not finite. A path or an address is no picture here:
                whoever sends a request must not choose what this machine reads.
        """
        if isinstance(value, BoxedPicture):
            return value
        boxes = None
        if isinstance(value, Mapping):
            unknown = [str(key) for key in value if key not in _KEYS]
            if unknown or "image" not in value:
                raise XTunerError(
                    f"a picture has the fields {sorted(map(str, value))}: expected 'image' and, where known, 'boxes'."
                )
            value, boxes = value["image"], value.get("boxes")
        is_array = isinstance(value, np.ndarray) and value.dtype == np.uint8
        if value is not None and not is_array and not isinstance(value, (Image.Image, bytes)):
            if not isinstance(getattr(value, "original_bytes", None), bytes):
                raise XTunerError(
                    f"a picture is a {type(value).__name__}: expected a Pillow picture, an array of bytes (height, "
                    "width, 3), or an object with 'image' and 'boxes'."
                )
        return cls(value, read_boxes(boxes))

    @property
    def content(self) -> Any:
        """What decodes to the picture. A file's own bytes go before what another loader made of them, which may have
        turned it or put it on another ground.
        """
        return getattr(self.source, "original_bytes", self.source)

    @property
    def cache_key(self) -> dict[str, Any]:
        """What tells this picture from others, boxes included, in types that vLLM's cache hashes."""
        return {"image": self.content, "boxes": None if self.found is None else list(map(_plain, self.found))}


def kept_name(picture: BoxedPicture | PreparedPicture, given: str | None) -> str | None:
    """Returns the name under which vLLM keeps a picture: that of its sender, told apart by its boxes."""
    if given is None:
        return None
    if isinstance(picture, PreparedPicture):
        content = picture.boxes.numpy().tobytes() + bytes([picture.is_frame])
    elif picture.found is None:
        return given
    else:
        found = picture.found
        content = found.boxes.tobytes() + found.scores.tobytes() + json.dumps(found.labels).encode()
    return f"{given}-boxes-{hashlib.sha256(content).hexdigest()}"


def read_pictures(given: Any) -> list[BoxedPicture | PreparedPicture]:
    """Reads the pictures of a request: one, or a list of them. Prepared ones stay as they are.

    Raises:
        XTunerError: see `BoxedPicture.read`.
    """
    entries = given if isinstance(given, (list, tuple)) else [given]
    return [entry if isinstance(entry, PreparedPicture) else BoxedPicture.read(entry) for entry in entries]


def read_boxes(given: Any) -> PictureBoxes | None:
    """Reads the boxes of one picture; see `as_picture_boxes`.

    Raises:
        XTunerError: no boxes, or numbers that are not finite.
    """
    return _finite(as_picture_boxes(given))


def join_options(
    pictures: Sequence[BoxedPicture | PreparedPicture], options: Mapping[str, Any]
) -> list[BoxedPicture | PreparedPicture]:
    """Gives each picture its boxes of a request's ``mm_processor_kwargs``, unless it came with its own.

    Raises:
        XTunerError: other options, boxes for another number of pictures, or no boxes.
    """
    for name in options:
        if name != _OPTION:
            raise XTunerError(
                f"mm_processor_kwargs has {str(name)[:60]!r}: expected 'boxes', one list per picture."
                f"{nearest(str(name), [_OPTION])}"
            )
    found = [_finite(boxes) for boxes in _per_picture(options.get(_OPTION), len(pictures))]
    return [
        replace(picture, found=boxes) if isinstance(picture, BoxedPicture) and picture.found is None else picture
        for picture, boxes in zip(pictures, found, strict=True)
    ]


def split_boxes(url: str) -> tuple[str, PictureBoxes | None]:
    """Takes the boxes off a picture's URL; the inverse of `with_boxes`.

    Raises:
        XTunerError: what stands after ``#boxes=`` is no JSON or no boxes.
    """
    address, found, text = url.partition(FRAGMENT)
    if not found:
        return url, None
    try:
        value = json.loads(unquote(text))
    except (ValueError, RecursionError) as error:
        raise XTunerError(f"the URL's boxes are no JSON ({error}): expected #boxes=[[x0,y0,x1,y1],…].") from error
    return address, read_boxes(value)


def spread_boxes(count: int, size: int) -> list[list[float]]:
    """Returns `count` boxes in a square of `size` pixels that do not overlap, so that all become object tokens."""
    side = max(int(np.ceil(np.sqrt(count))), 1)
    step = size / side
    places = [(number % side * step, number // side * step) for number in range(count)]
    return [[x, y, x + 0.9 * step, y + 0.9 * step] for x, y in places]


def _per_picture(given: Any, count: int) -> list[PictureBoxes | None]:
    try:
        return boxes_per_picture(given, count)
    except TypeError as error:
        raise XTunerError(
            f"the boxes are a {type(given).__name__}: expected one list per picture, of {counted(count, 'pictures')}."
        ) from error


def _finite(found: PictureBoxes | None) -> PictureBoxes | None:
    if found is not None and not (np.isfinite(found.boxes).all() and np.isfinite(found.scores).all()):
        raise XTunerError("a coordinate or score of the boxes is not finite in 32 bits: send ordinary numbers.")
    return found


def _plain(part: Any) -> Any:
    return np.ascontiguousarray(part) if isinstance(part, np.ndarray) else list(part)
