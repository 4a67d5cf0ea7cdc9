"""Boxes that cannot be pixels of their picture: fractions, width and height as corners, without area, elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from mg_llava.boxes.records import BoxRecord
from mg_llava.boxes.selection import clip_boxes, valid_boxes
from xtuner.errors import XTunerError

FRACTIONS = "boxes within 0 to 1"
CORNERS = "boxes with width and height as corners"
INVERTED = "inverted boxes left out"
NO_AREA = "boxes without area"
OUTSIDE = "boxes outside the picture left out"
LARGER = "boxes of a larger picture"

_SPILL = 1.1
"""Detectors write boxes a little beyond the edges."""

ADVICE = {
    FRACTIONS: "expected pixels: multiply x by the picture's width, y by its height",
    CORNERS: "expected [x0, y0, x1, y1]: add x to the width, y to the height",
    INVERTED: "expected x0 <= x1 and y0 <= y1 (corners, not width and height)",
    NO_AREA: "expected x0 < x1 and y0 < y1",
    OUTSIDE: "expected boxes that were made for this version of the picture",
    LARGER: "expected boxes that were made for this version of the picture",
}
"""What to do, by the kind of box."""


def odd_boxes(boxes: np.ndarray, size: tuple[int, int] | None) -> dict[str, np.ndarray]:
    """Returns which boxes of one picture cannot be pixels of it: (N,) bool by kind; a box is of one kind at most.

    Args:
        boxes: (N, 4) as a file has them.
        size: (width, height) of the picture; None = not known, then nothing is outside.
    """
    finite = np.isfinite(boxes).all(axis=1)
    valid = valid_boxes(boxes)
    inverted = ~valid
    none, every = np.zeros(len(boxes), bool), np.ones(len(boxes), bool)
    no_area = valid & ((boxes[:, 2] == boxes[:, 0]) | (boxes[:, 3] == boxes[:, 1]))
    # one alone may be a slip
    many = inverted.sum() > max(1, len(boxes) / 2)
    corners = bool(many and finite.all() and (boxes >= 0).all() and _fits(boxes, size))
    # a single pixel is a box too, but not where the record has no other
    fractions = bool(len(boxes) and finite.all() and boxes.min() >= 0 and boxes.max() <= 1 and (boxes > 0).any())
    outside, larger = none.copy(), none
    if size is not None:
        outside[valid] = ~clip_boxes(boxes[valid], *size)[1]
        larger = valid & ~outside & (boxes[:, 2:] > np.array(size, np.float32) * _SPILL + 2).any(axis=1)
    if fractions or corners:
        return {FRACTIONS if fractions else CORNERS: every}
    return {INVERTED: inverted, NO_AREA: no_area & ~outside, OUTSIDE: outside, LARGER: larger & ~no_area}


def refuse_odd(counts: Mapping[str, int], total: int, path: str, records: Iterable[BoxRecord]) -> None:
    """Refuses a box file in which most boxes are of one odd kind.

    Args:
        counts: boxes of each kind.
        total: number of boxes.
        path: of the file.
        records: of the file, among which an example is looked for.

    Raises:
        XTunerError: more than half of the boxes are of one kind.
    """
    for kind, advice in ADVICE.items():
        # those of a larger picture lie beyond its edges, or across them
        count = counts.get(kind, 0) + (counts.get(OUTSIDE, 0) if kind == LARGER else 0)
        if 2 * count <= total:
            continue
        example = ""
        for record in records:
            found = odd_boxes(record.found.boxes, record.size).get(kind)
            if found is not None and found.any():
                number = int(np.flatnonzero(found)[0])
                example = f" ({record.where}, box number {number + 1} is {record.found.boxes[number].tolist()})"
                break
        raise XTunerError(
            f"box file '{path}' has {count:,} {kind.removesuffix(' left out')} among {total:,}{example}: {advice}; "
            "set allow_odd_boxes=True to train with them anyway."
        )


def _fits(boxes: np.ndarray, size: tuple[int, int] | None) -> bool:
    """True where boxes read as x, y, width, height lie in their picture, give or take a pixel."""
    if size is None:
        return True
    return bool((boxes[:, :2] + boxes[:, 2:] <= np.array(size, np.float32) + 1).all())
