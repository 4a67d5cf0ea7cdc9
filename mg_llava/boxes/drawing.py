"""Pictures with their boxes drawn on them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont, ImageOps

from mg_llava.boxes.selection import PictureBoxes

_BOX_COLORS = ("#ff5d5d", "#4fd1ff", "#ffd34d", "#7be37b", "#ff8ae2", "#ffa04d", "#b69cff", "#f2f2f2")
"""One per label, again from the first where there are more labels."""

_LEGIBLE_SIDE = 640
"""Pixels; pictures with a shorter longer side are enlarged by a whole factor before boxes are drawn."""

_FRAME_HEIGHT, _CAPTION, _COLUMNS = 320, 24, 8
"""Pixels of a frame and of the words below it, and frames of a row."""

_FOR, _AGAINST, _NEUTRAL = (255, 60, 50), (60, 120, 255), (225, 225, 225)


def weight_color(weight: float, strongest: float) -> str:
    """Returns the colour of a weight between −strongest (blue) and strongest (red) as ``#rrggbb``."""
    share = min(abs(weight) / strongest, 1.0) if strongest else 0.0
    end = _FOR if weight > 0 else _AGAINST
    mixed = [round(pale + share * (full - pale)) for pale, full in zip(_NEUTRAL, end, strict=True)]
    return "#{:02x}{:02x}{:02x}".format(*mixed)


def draw_boxes(
    picture: Image.Image,
    found: PictureBoxes,
    weights: Sequence[float] | None = None,
    strongest: float | None = None,
) -> Image.Image:
    """Returns an RGB picture with boxes, labels and scores drawn on it; a small one enlarged, so that they can be read.

    Args:
        picture: not changed.
        found: boxes xyxy in pixels of `picture`.
        weights: one per box; colours then say how much each counted (red: for, blue: against, pale: not at all) and
            stand in the place of scores. None = a colour per label.
        strongest: weight of the fullest colour; None = that of the strongest of `weights`.
    """
    scale = max(1, math.ceil(_LEGIBLE_SIDE / max(picture.size)))
    drawn = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(drawn)
    font = ImageFont.load_default(max(12, round(max(drawn.size) / 55)))
    width = max(1, round(max(drawn.size) / 400))
    labels = sorted(set(found.labels))
    strongest = max(map(abs, weights or ()), default=0.0) if strongest is None else strongest
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


def draw_frames(
    pictures: Sequence[Image.Image],
    found: Sequence[PictureBoxes | None],
    captions: Sequence[str],
    frame_weights: Sequence[float] | None = None,
    box_weights: Sequence[Sequence[float]] | None = None,
) -> Image.Image:
    """Returns the frames of a video in a row (of 8, then the next), boxes drawn on them, each above its caption.

    Args:
        pictures: the frames; the first one's shape is that of all places.
        found: boxes of each, None for none.
        captions: of each.
        frame_weights: how much each frame counted: it stands behind the caption and colours the ground, as in
            `draw_boxes`; None = not known.
        box_weights: likewise each box of each frame.
    """
    strongest = max((abs(weight) for weights in box_weights or () for weight in weights), default=0.0)
    most = max(map(abs, frame_weights or ()), default=0.0)
    width, height = pictures[0].size
    shown_width, shown_height = max(1, round(width * _FRAME_HEIGHT / height)), _FRAME_HEIGHT
    columns = min(_COLUMNS, len(pictures))
    rows = -(-len(pictures) // columns)
    strip = Image.new("RGB", (columns * shown_width, rows * (shown_height + _CAPTION)), "white")
    pen, font = ImageDraw.Draw(strip), ImageFont.load_default(_CAPTION - 8)
    for number, (picture, boxes, caption) in enumerate(zip(pictures, found, captions, strict=True)):
        weights = None if box_weights is None else box_weights[number]
        drawn = picture if boxes is None else draw_boxes(picture, boxes, weights, strongest)
        left, top = number % columns * shown_width, number // columns * (shown_height + _CAPTION)
        strip.paste(ImageOps.contain(drawn, (shown_width, shown_height)), (left, top))
        color = "white" if frame_weights is None else weight_color(frame_weights[number], most)
        text = caption if frame_weights is None else f"{caption}  {frame_weights[number]:+.2f}"
        bottom = top + shown_height
        pen.rectangle((left, bottom, left + shown_width - 1, bottom + _CAPTION - 1), fill=color)
        pen.text((left + 3, bottom + 2), text, fill="black", font=font)
    return strip
