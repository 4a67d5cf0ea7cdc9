"""Pictures of any shape to a square of S pixels, at the cost of their own pixels.

Done in the published order (pad, resize, crop), a picture of 20 x 200,000 pixels would become one of 200,000 x 200,000
on the way. The functions here give the same bits without it: padding that no pixel of the result needs is never made.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

_EXTREME = 4
"""Longer side over shorter side."""
_ROWS = 512
_MARGIN = 2
"""Pixels more than the filter reaches, for rounding."""
_FRACTION_BITS = 22
"""Of Pillow's whole-number filter weights."""
_BICUBIC = Image.Resampling.BICUBIC

Color = tuple[int, int, int]


def pad_and_resize(image: Image.Image, size: int, color: Color) -> Image.Image:
    """Returns the picture padded with `color` to a square, the picture in its middle, resized to `size` pixels.

    Args:
        image: RGB.
        size: side of the result.
        color: of the padding; an odd pixel of it stands at the right or below.
    """
    width, height = image.size
    side = max(width, height)
    if width == height:
        return image.resize((size, size), _BICUBIC)
    # Pillow resizes each row, then each column; rows and columns of padding come out of a pass as they went in
    if width > height:
        strip = image.resize((size, height), _BICUBIC)
        top = (side - height) // 2
        if _is_extreme(image):
            first, columns = _resize_rows_of_padded(strip.transpose(Image.Transpose.TRANSPOSE), size, side, top, color)
            return _on_square(columns.transpose(Image.Transpose.TRANSPOSE), (0, first), size, color)
        padded = Image.new("RGB", (size, side), color)
        padded.paste(strip, (0, top))
        return padded.resize((size, size), _BICUBIC)
    left = (side - width) // 2
    if _is_extreme(image):
        first, rows = _resize_rows_of_padded(image, size, side, left, color)
    else:
        first, end = _touched(left, left + width, size / side, size)
        rows = _rows_of_padded(image, size, left, color).crop((first, 0, end, side))
    return _on_square(rows.resize((rows.width, size), _BICUBIC), (first, 0), size, color)


def resize_and_crop(image: Image.Image, size: int, resized: tuple[int, int]) -> Image.Image:
    """Returns the middle square of `size` pixels of the picture resized to `resized` (width, height).

    Of extreme shapes only the middle is resized, which differs by at most one grey level from resizing all.

    Args:
        image: RGB.
        size: side of the result.
        resized: its shorter side is `size`.
    """
    left, top = (resized[0] - size) // 2, (resized[1] - size) // 2
    if not _is_extreme(image):
        image = image.resize(resized, _BICUBIC)
        return image if resized == (size, size) else image.crop((left, top, left + size, top + size))
    tall = image.height > image.width
    longer, start = (image.height, top) if tall else (image.width, left)
    scale = longer / max(resized)
    begin, end = start * scale, (start + size) * scale
    # cut out roughly first: near zero, Pillow's 32-bit floats name a place exactly enough
    low, high = _touched(begin, end, 1, longer, reach=int(2 * max(scale, 1)) + _MARGIN)
    begin, end = begin - low, min(end, high) - low
    if not tall:
        middle = image.crop((low, 0, high, image.height))
        middle = middle.resize((size, image.height), _BICUBIC, box=(begin, 0, end, image.height))
        return middle.resize((size, size), _BICUBIC)
    middle = image.crop((0, low, image.width, high))
    # of tall pictures that get smaller Pillow resizes the columns first
    if scale > 1:
        middle = middle.resize((image.width, size), _BICUBIC, box=(0, begin, image.width, end))
        return middle.resize((size, size), _BICUBIC)
    return middle.resize((size, middle.height), _BICUBIC).resize((size, size), _BICUBIC, box=(0, begin, size, end))


def _is_extreme(image: Image.Image) -> bool:
    return max(image.size) > _EXTREME * min(image.size)


def _on_square(part: Image.Image, place: tuple[int, int], size: int, color: Color) -> Image.Image:
    square = Image.new("RGB", (size, size), color)
    square.paste(part, place)
    return square


def _touched(start: float, end: float, scale: float, size: int, reach: int | None = None) -> tuple[int, int]:
    """Pixels of a side of `size` that pixels `start` to `end` get into after resizing by `scale`."""
    # the filter reaches two pixels of the larger scale to either side
    reach = int(2 * max(scale, 1)) + _MARGIN if reach is None else reach
    return max(0, int(start * scale) - reach), min(size, int(end * scale) + 1 + reach)


def _rows_of_padded(image: Image.Image, size: int, left: int, color: Color) -> Image.Image:
    """The rows of a tall picture, padded to its height and resized to `size` pixels; a few at a time are padded."""
    side = image.height
    rows = Image.new("RGB", (size, side), color)
    for top in range(0, side, _ROWS):
        count = min(_ROWS, side - top)
        padded = Image.new("RGB", (side, count), color)
        padded.paste(image.crop((0, top, image.width, top + count)), (left, 0))
        rows.paste(padded.resize((size, count), _BICUBIC), (0, top))
    return rows


def _resize_rows_of_padded(
    image: Image.Image, size: int, side: int, left: int, color: Color
) -> tuple[int, Image.Image]:
    """Resizes rows that would be padded to `side` pixels, the picture at `left`, without padding them.

    A row's result is weights times its pixels, plus what is left of the weights times the padding's colour.

    Returns:
        The first column that differs from padding, and these columns as a picture.
    """
    first, end = _touched(left, left + image.width, size / side, size)
    weights, padding = _filter_weights(first, end, size, side, left, image.width)
    constant = padding[:, None] * np.array(color, np.float64) + (1 << (_FRACTION_BITS - 1))
    rows = Image.new("RGB", (end - first, image.height))
    for top in range(0, image.height, _ROWS):
        bottom = min(top + _ROWS, image.height)
        pixels = np.asarray(image.crop((0, top, image.width, bottom)), np.float64)
        # whole numbers below 2^53: exact as floats, for which there are fast products
        sums = np.matmul(weights, pixels) + constant
        values = np.clip(sums.astype(np.int64) >> _FRACTION_BITS, 0, 255).astype(np.uint8)
        rows.paste(Image.fromarray(values), (0, top))
    return first, rows


def _filter_weights(first: int, end: int, size: int, side: int, left: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Pillow's bicubic weights, in whole 2^-22, of resizing `side` pixels to `size`.

    Returns:
        (end - first, width) weights of pixels `left` to `left + width` for results `first` to `end`, and (end - first,)
        sums of the weights of all other pixels.
    """
    scale = side / size
    stretch = max(scale, 1.0)
    weights = np.zeros((end - first, width))
    others = np.zeros(end - first)
    for row, number in enumerate(range(first, end)):
        center = (number + 0.5) * scale
        low, high = max(int(center - 2 * stretch + 0.5), 0), min(int(center + 2 * stretch + 0.5), side)
        own = _bicubic(np.abs((np.arange(low, high) - center + 0.5) * (1 / stretch)))
        # summed one by one, as Pillow does
        own = own / np.add.accumulate(own)[-1] * (1 << _FRACTION_BITS)
        own = np.trunc(own + np.copysign(0.5, own))
        begin, stop = max(low, left), max(min(high, left + width), max(low, left))
        weights[row, begin - left : stop - left] = own[begin - low : stop - low]
        others[row] = own.sum() - own[begin - low : stop - low].sum()
    return weights, others


def _bicubic(x: np.ndarray) -> np.ndarray:
    """The cubic convolution kernel with a = -1/2 at distances x >= 0."""
    a = -0.5
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
