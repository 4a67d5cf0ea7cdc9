"""Pictures with their boxes drawn on them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from mg_llava.boxes.selection import PictureBoxes

_BOX_COLORS = ("#ff5d5d", "#4fd1ff", "#ffd34d", "#7be37b", "#ff8ae2", "#ffa04d", "#b69cff", "#f2f2f2")
"""One per label, again from the first where there are more labels."""

_LEGIBLE_SIDE = 640
"""Pixels; pictures with a shorter longer side are enlarged by a whole factor before boxes are drawn."""

_FOR, _AGAINST, _NEUTRAL = (255, 60, 50), (60, 120, 255), (225, 225, 225)


def weight_color(weight: float, strongest: float) -> str:
    """Returns the colour of a weight between −strongest (blue) and strongest (red) as ``#rrggbb``."""
    share = min(abs(weight) / strongest, 1.0) if strongest else 0.0
    end = _FOR if weight > 0 else _AGAINST
    mixed = [round(pale + share * (full - pale)) for pale, full in zip(_NEUTRAL, end, strict=True)]
    return "#{:02x}{:02x}{:02x}".format(*mixed)


def draw_boxes(picture: Image.Image, found: PictureBoxes, weights: Sequence[float] | None = None) -> Image.Image:
    """Returns an RGB picture with boxes, labels and scores drawn on it; a small one enlarged, so that they can be read.

    Args:
        picture: not changed.
        found: boxes xyxy in pixels of `picture`.
        weights: one per box; colours then say how much each counted (red: for, blue: against, pale: not at all) and
            stand in the place of scores. None = a colour per label.
    """
    scale = max(1, math.ceil(_LEGIBLE_SIDE / max(picture.size)))
    drawn = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(drawn)
    font = ImageFont.load_default(max(12, round(max(drawn.size) / 55)))
    width = max(1, round(max(drawn.size) / 400))
    labels = sorted(set(found.labels))
    strongest = max((abs(weight) for weight in weights), default=0.0) if weights is not None else 0.0
    for number, (box, label) in enumerate(zip(found.boxes.tolist(), found.labels, strict=True)):
        if weights is None:
            color = _BOX_COLORS[labels.index(label) % len(_BOX_COLORS)]
            text = f"{label} {found.scores[number]:.2f}"
        else:
            color = weight_color(weights[number], strongest)
            text = f"{label} {weights[number]:+.2f}"
        left, top, right, bottom = (coordinate * scale for coordinate in box)
        pen.rectangle((left, top, max(left, right), max(top, bottom)), outline=color, width=width)
        text_left, text_top, text_right, text_bottom = pen.textbbox((0, 0), text, font=font)
        # above the box and within the picture
        corner_left = min(max(0, left), max(0, drawn.width - text_right - 2))
        corner_top = max(0, top - text_bottom - 2)
        pen.rectangle((corner_left, corner_top, corner_left + text_right + 2, corner_top + text_bottom + 2), fill=color)
        pen.text((corner_left + 1 - text_left, corner_top + 1), text, fill="black", font=font)
    return drawn
