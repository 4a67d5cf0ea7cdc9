"""Box geometry and the choice of boxes that become object tokens: pure functions.

Everywhere: `boxes` is (N, 4) float32 ``[x0, y0, x1, y1]`` in pixels, x to the right, y down, (0, 0) the outer
corner of the first pixel, so that a picture of width w reaches from x = 0 to x = w. Frames:

- *picture*: the original picture, as detectors write boxes;
- *padded*: the square of side max(w, h) with the picture in its middle;
- *model*: the square of `image_size` pixels that the encoders see.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np

from xtuner.errors import XTunerError, nearest

LimitMode = Literal["per_image", "per_category"]

MOST_BOXES = 10_000
"""Of one picture. Suppression compares each with each: this bounds its time to half a second."""

_TIGHT_MARGIN = 50
"""A training sample whose text comes this near to `max_length` tokens keeps few boxes."""
_TIGHT_PER_IMAGE = 20
_LARGE_LIMIT = 50
_PER_CATEGORY_LARGE, _PER_CATEGORY_SMALL, _PER_CATEGORY_TIGHT = 20, 5, 1


class PictureBoxes(NamedTuple):
    """The boxes of one picture.

    Attributes:
        boxes: (N, 4) float32 xyxy in pixels.
        labels: N class names.
        scores: (N,) float32, higher is surer.
    """

    boxes: np.ndarray
    labels: tuple[str, ...]
    scores: np.ndarray

    def take(self, indices: np.ndarray) -> PictureBoxes:
        """Returns the boxes at `indices` (whole numbers, or N booleans), in that order."""
        if indices.dtype == bool:
            indices = np.flatnonzero(indices)
        return PictureBoxes(self.boxes[indices], tuple(self.labels[i] for i in indices), self.scores[indices])


def no_boxes() -> PictureBoxes:
    """Returns the boxes of a picture in which nothing was found."""
    return PictureBoxes(np.zeros((0, 4), np.float32), (), np.zeros(0, np.float32))


def valid_boxes(boxes: np.ndarray) -> np.ndarray:
    """Returns (N,) bool: all coordinates finite, x1 >= x0 and y1 >= y0 (no width or no height is allowed)."""
    return np.isfinite(boxes).all(axis=1) & (boxes[:, 2] >= boxes[:, 0]) & (boxes[:, 3] >= boxes[:, 1])


def pad_boxes(boxes: np.ndarray, width: int, height: int) -> np.ndarray:
    """Returns boxes of the picture frame in the padded frame: moved by whole pixels.

    An odd pixel of padding stands at the right or below.

    Args:
        boxes: (N, 4) in the frame of a picture of `width` x `height` pixels.
        width: of the picture.
        height: of the picture.
    """
    side = max(width, height)
    left, top = (side - width) // 2, (side - height) // 2
    return boxes + np.array([left, top, left, top], np.float32)


def resize_boxes(boxes: np.ndarray, from_size: tuple[int, int], to_size: tuple[int, int]) -> np.ndarray:
    """Returns boxes of a frame of `from_size` (width, height) pixels, resized with it to `to_size`."""
    # divided first: the other order is one unit in the last place away from the published boxes
    return boxes / np.array(from_size * 2, np.float32) * np.array(to_size * 2, np.float32)


def clip_boxes(boxes: np.ndarray, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Cuts boxes at the edges of a frame of `width` x `height` pixels.

    Returns:
        (M, 4) the boxes that remain, and (N,) bool which these are. A box that reaches over an edge and keeps
        no area inside is dropped; a box without area that lies inside is the detector's own and stays, as in
        the published method.
    """
    clipped = np.clip(boxes, 0, np.array([width, height] * 2, np.float32))
    cut = (clipped != boxes).any(axis=1)
    has_area = (clipped[:, 2] > clipped[:, 0]) & (clipped[:, 3] > clipped[:, 1])
    kept = has_area | ~cut
    return clipped[kept], kept


def nms_per_class(boxes: np.ndarray, labels: Sequence[str], scores: np.ndarray, iou_threshold: float) -> np.ndarray:
    """Non-maximum suppression strictly within each class.

    Args:
        boxes: (N, 4) in any one frame.
        labels: N class names.
        scores: (N,).
        iou_threshold: a box that overlaps a better one of its class by more (intersection over union) goes.

    Returns:
        Indices of the boxes that remain, best score first; equal scores in their given order.
    """
    number_of = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    classes = np.array([number_of[label] for label in labels], dtype=np.int64)
    order = np.argsort(-scores, kind="stable")
    kept = np.ones(len(classes), dtype=bool)
    for number in np.flatnonzero(np.bincount(classes, minlength=len(number_of)) > 1):
        members = order[classes[order] == number]
        kept[members] = _survivors(boxes[members], iou_threshold)
    return order[kept[order]]


def _survivors(boxes: np.ndarray, iou_threshold: float) -> np.ndarray:
    """Which of the boxes (N, 4), best first, overlap none that survives before them: (N,) bool.

    In float32 and compared in float64, as torchvision's operator does, which is not there for every build of torch.
    """
    kept = np.ones(len(boxes), dtype=bool)
    corners = np.ascontiguousarray(boxes.astype(np.float32, copy=False).T)
    areas = (corners[2] - corners[0]) * (corners[3] - corners[1])
    with np.errstate(divide="ignore", invalid="ignore"):
        for place in range(len(boxes) - 1):
            if not kept[place]:
                continue
            left, top, right, bottom = corners[:, place]
            others = corners[:, place + 1 :]
            width = np.minimum(right, others[2]) - np.maximum(left, others[0])
            height = np.minimum(bottom, others[3]) - np.maximum(top, others[1])
            shared = np.maximum(width, np.float32(0)) * np.maximum(height, np.float32(0))
            overlap = shared / (areas[place] + areas[place + 1 :] - shared)
            # two boxes without area overlap by nothing over nothing, which is no more than the threshold
            kept[place + 1 :] &= ~(overlap.astype(np.float64) > iou_threshold)
    return kept


def limit_boxes(labels: Sequence[str], limit_num: int | None, limit_mode: LimitMode, tight: bool) -> np.ndarray:
    """Chooses among boxes that stand in order of score, best first.

    `per_image`: the `limit_num` best, 20 where `tight`. `per_category`: where there are more than `limit_num`
    or it is `tight`, the K best of each class, classes in the order in which they first appear; K = 1 where
    `tight`, else 20 for a `limit_num` of 50 and more, 5 below.

    Returns:
        Indices of the chosen boxes, in their new order.
    """
    count = len(labels)
    if limit_mode == "per_image":
        limit = _TIGHT_PER_IMAGE if tight else limit_num
        return np.arange(count if limit is None else min(count, limit))
    if not tight and (limit_num is None or count <= limit_num):
        return np.arange(count)
    large = limit_num is None or limit_num >= _LARGE_LIMIT
    per_class = _PER_CATEGORY_TIGHT if tight else _PER_CATEGORY_LARGE if large else _PER_CATEGORY_SMALL
    members: dict[str, list[int]] = {}
    for index, label in enumerate(labels):
        members.setdefault(label, []).append(index)
    return np.array([index for group in members.values() for index in group[:per_class]], dtype=np.int64)


def drop_lowest(scores: np.ndarray, room: int) -> np.ndarray:
    """Returns the indices, rising, of the `room` boxes with the best scores (of all if there are fewer)."""
    if len(scores) <= room:
        return np.arange(len(scores))
    return np.sort(np.argsort(-scores, kind="stable")[: max(room, 0)])


@dataclass(frozen=True)
class BoxSelection:
    """Which of a picture's boxes become object tokens: NMS per class, then a limit.

    Args:
        iou_threshold: of the non-maximum suppression, 0 to 1.
        limit_num: most boxes of a picture, see `limit_boxes`; None = no limit.
        limit_mode: "per_image" or "per_category", see `limit_boxes`.
        limit_video: most boxes of all frames of a video together, the best of them; None = no limit but that of each
            frame.
        frame_tolerance: seconds by which a frame may be away from the one that its boxes were found in.

    Raises:
        XTunerError: a value is out of its range.

    Examples:
        The second cat overlaps the first, so it goes:

        >>> boxes = np.array([[0, 0, 10, 10], [1, 0, 10, 10], [20, 20, 30, 30]], np.float32)
        >>> select = BoxSelection(iou_threshold=0.5, limit_num=2)
        >>> select(boxes, ["cat", "cat", "dog"], np.array([0.9, 0.8, 0.7], np.float32)).labels
        ('cat', 'dog')
    """

    iou_threshold: float = 0.2
    limit_num: int | None = 100
    limit_mode: LimitMode = "per_image"
    limit_video: int | None = None
    frame_tolerance: float = 0.25

    def __post_init__(self) -> None:
        if self.limit_mode not in get_args(LimitMode):
            raise XTunerError(
                f"box limit_mode={self.limit_mode!r}: expected one of {', '.join(get_args(LimitMode))}."
                f"{nearest(str(self.limit_mode), get_args(LimitMode))}"
            )
        if not 0 <= self.iou_threshold <= 1:
            raise XTunerError(f"box iou_threshold={self.iou_threshold}: expected a number from 0 to 1.")
        if self.limit_num is not None and self.limit_num < 1:
            raise XTunerError(f"box limit_num={self.limit_num}: expected at least 1, or None for no limit.")
        if self.limit_video is not None and self.limit_video < 1:
            raise XTunerError(f"box limit_video={self.limit_video}: expected at least 1, or None for no limit.")
        if not self.frame_tolerance >= 0:
            raise XTunerError(f"box frame_tolerance={self.frame_tolerance}: expected seconds, 0 or more.")

    def __call__(
        self,
        boxes: np.ndarray,
        labels: Sequence[str],
        scores: np.ndarray,
        num_ids: int = 0,
        max_length: int | None = None,
        training: bool = False,
    ) -> PictureBoxes:
        """Chooses among the boxes of one picture.

        Args:
            boxes: (N, 4) in the picture or the padded frame; those that `valid_boxes` refuses are left out.
            labels: N class names.
            scores: (N,).
            num_ids: length of the sample's text in tokens.
            max_length: most tokens of text; None = unlimited.
            training: long texts keep few boxes only in training.

        Returns:
            The chosen boxes in the frame of `boxes`, best score first (`per_category` over its limit: class
            by class).

        Raises:
            XTunerError: there are more than `MOST_BOXES`.
        """
        if len(boxes) > MOST_BOXES:
            raise XTunerError(
                f"a picture has {len(boxes):,} boxes, but at most {MOST_BOXES:,} are allowed: keep those with the "
                "best scores."
            )
        found = PictureBoxes(boxes, tuple(labels), scores).take(valid_boxes(boxes))
        found = found.take(nms_per_class(*found, iou_threshold=self.iou_threshold))
        tight = training and max_length is not None and num_ids >= max_length - _TIGHT_MARGIN
        return found.take(limit_boxes(found.labels, self.limit_num, self.limit_mode, tight))

    def choose(self, found: PictureBoxes, size: tuple[int, int]) -> tuple[PictureBoxes, int]:
        """Returns the boxes that become object tokens, and how many of the chosen lie outside and are left out.

        Args:
            found: of a picture.
            size: its (width, height) in pixels.
        """
        chosen = self(*found, training=False)
        _, inside = clip_boxes(chosen.boxes, *size)
        return chosen.take(inside), len(chosen.boxes) - int(inside.sum())
