"""Picture files to 8-bit RGB: the only door through which a picture's bytes come in, whatever they hold."""

from __future__ import annotations

import base64
import binascii
import io
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TypeAlias

from PIL import Image, ImageOps

from mg_llava.pictures.colors import to_rgb
from xtuner.errors import SampleError, XTunerError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""Formats that are read. Pillow knows dozens more, some of which (EPS) start another program."""

MAX_MEMORY = 3 << 29
"""Most bytes that decoding one picture may need, as `decoded_bytes` estimates it (1.6 GB)."""

_BROKEN = "picture does not decode"
_NAMES = "JPEG, PNG, WebP, GIF, BMP or TIFF"
_BYTES_OF_MODE = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}
_RGB_BYTES = 4
_SCALING_BYTES = 9
"""Per pixel of 32-bit pictures: float64 on the way to 8 bits."""
_DECODER_BYTES = {"WEBP": 8, "GIF": 4, "JPEG": 6}
"""Per pixel, what the decoders themselves take: canvases, and the coefficients of a progressive JPEG."""

# sizes are checked here, by what decoding takes
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

PictureSource: TypeAlias = "str | os.PathLike[str] | IO[bytes]"


def open_picture(
    path: PictureSource, apply_exif_orientation: bool = False, max_pixels: int | None = None
) -> Image.Image:
    """Reads a picture file as 8-bit RGB.

    Args:
        path: file, or its bytes as an open stream, of one of `FORMATS`; of an animation the first frame is read.
        apply_exif_orientation: turn the picture as its EXIF tag says. Boxes hold for the pixels as they were
            when the boxes were made, and the published ones were made without turning; so the default leaves
            the pixels as stored.
        max_pixels: most pixels; a larger picture is refused before it is decoded. None = no bound but `MAX_MEMORY`.

    Raises:
        SampleError: the file is missing, is no regular file, does not decode, or needs more than `MAX_MEMORY`.
        XTunerError: it has more than `max_pixels`.
    """
    with opened(path) as image:
        check_size(path, image, max_pixels)
        image.load()
        return to_rgb(ImageOps.exif_transpose(image) if apply_exif_orientation else image)


def open_base64(
    text: str, apply_exif_orientation: bool = False, max_pixels: int | None = None, strict: bool = False
) -> Image.Image:
    """Reads a picture from the base64 text of its file, as `open_picture` does.

    Args:
        text: the base64 text.
        apply_exif_orientation: see `open_picture`.
        max_pixels: see there.
        strict: refuse characters, other than white space, that are not base64's; otherwise they are skipped.

    Raises:
        SampleError: the text is not base64, or as `open_picture`.
        XTunerError: as `open_picture`.
    """
    try:
        content = base64.b64decode("".join(text.split()) if strict else text, validate=strict)
    except (binascii.Error, ValueError) as error:
        raise SampleError(_BROKEN, f"the picture's base64 text does not decode: {error}.") from error
    if not content:
        raise SampleError(_BROKEN, "the picture is empty, 0 bytes.")
    return open_picture(io.BytesIO(content), apply_exif_orientation, max_pixels)


def num_frames(path: PictureSource) -> int:
    """Returns how many frames a picture file holds; more than 1 is an animation, of which the first frame is read.

    Raises:
        SampleError: as `open_picture`.
    """
    with opened(path) as image:
        return int(getattr(image, "n_frames", 1))


def picture_size(path: PictureSource, apply_exif_orientation: bool = False) -> tuple[int, int]:
    """Returns (width, height) in pixels from the file's header alone.

    Raises:
        SampleError: the file is missing or is no picture.
    """
    with opened(path) as image:
        width, height = image.size
        turned = apply_exif_orientation and image.getexif().get(0x0112, 1) >= 5
        return (height, width) if turned else (width, height)


def decoded_bytes(image: Image.Image) -> int:
    """Returns about how many bytes decoding an opened picture to RGB takes, from its header alone."""
    per_pixel = _BYTES_OF_MODE.get(image.mode, 4) + (_RGB_BYTES if image.mode != "RGB" else 0)
    if image.mode in ("I", "F"):
        per_pixel += _SCALING_BYTES
    if image.format != "JPEG" or image.info.get("progressive"):
        per_pixel += _DECODER_BYTES.get(image.format or "", 0)
    return image.width * image.height * per_pixel


def check_size(source: PictureSource, image: Image.Image, max_pixels: int | None = None) -> None:
    """Refuses an opened picture before it is decoded.

    Raises:
        SampleError: decoding it needs more than `MAX_MEMORY`.
        XTunerError: it has more than `max_pixels`.
    """
    pixels = image.width * image.height
    if max_pixels is not None and pixels > max_pixels:
        raise XTunerError(
            f"{_named(source)} has {image.width} x {image.height} = {pixels / 1e6:.1f} megapixels, but at most "
            f"{max_pixels / 1e6:.1f} are allowed: make it smaller, since the model sees far fewer."
        )
    needed = decoded_bytes(image)
    if needed > MAX_MEMORY:
        raise SampleError(
            "picture too large",
            f"{_named(source)} has {image.width} x {image.height} pixels ({image.mode}); decoding it takes about "
            f"{needed / 1e9:.1f} GB, but at most {MAX_MEMORY / 1e9:.1f} GB is allowed: make it smaller.",
        )


@contextmanager
def opened(source: PictureSource) -> Iterator[Image.Image]:
    """Opens the header of a picture; every failure, also of what the caller does with it, names the picture.

    Raises:
        SampleError: as `open_picture`.
    """
    if isinstance(source, (str, os.PathLike)):
        check_file(os.fspath(source))
    try:
        with Image.open(source, formats=FORMATS) as image:
            yield image
    except XTunerError:
        raise
    except MemoryError as error:
        raise SampleError("out of memory", f"there is not enough memory to decode {_named(source)}.") from error
    except Exception as error:  # Pillow's decoders raise a dozen kinds, IndexError and struct.error among them
        raise _read_error(source, error) from error


def check_file(path: str, what: str = "picture") -> None:
    """Refuses what is no file before opening it: a FIFO would block for ever, a device has no end.

    Args:
        path: of the file.
        what: how messages call it: a record's key.

    Raises:
        SampleError: it is missing, cannot be looked at, or is no regular file.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        key = "image" if what == "picture" else what
        message = f"{what} '{path}' does not exist: check image_folder and the record's '{key}'."
        raise SampleError(f"missing {what}", message) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SampleError(
            f"{what} does not decode", f"{what} {path!r} cannot be read ({reason}): expected a file."
        ) from error
    if not stat.S_ISREG(mode):
        kind = "folder" if stat.S_ISDIR(mode) else "FIFO" if stat.S_ISFIFO(mode) else "device or socket"
        raise SampleError(f"{what} does not decode", f"{what} '{path}' is a {kind}: expected a file.")


def _named(source: PictureSource) -> str:
    return f"picture '{os.fspath(source)}'" if isinstance(source, (str, os.PathLike)) else "the picture"


def _read_error(source: PictureSource, error: BaseException) -> SampleError:
    reason = str(error) or type(error).__name__
    unknown = isinstance(error, Image.UnidentifiedImageError)
    if not isinstance(source, (str, os.PathLike)):
        # Pillow's own words would show the address of a buffer
        reason = "the format is not known" if unknown else reason
        return SampleError(_BROKEN, f"the picture's bytes do not decode ({reason}): expected a {_NAMES} file.")
    path = os.fspath(source)
    if not os.path.getsize(path):
        reason = "the file is empty, 0 bytes"
    elif unknown:
        reason = f"it is not a {_NAMES} file"
    return SampleError(_BROKEN, f"picture '{path}' does not decode ({reason}): replace the file or remove its record.")
