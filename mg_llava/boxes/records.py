"""One record of a box file: what it may say, and how it is checked."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mg_llava.boxes.selection import MOST_BOXES, PictureBoxes
from xtuner.data.records.messages import check_text
from xtuner.errors import XTunerError, counted

_LARGEST_SIDE = 1_000_000_000
_SHOWN = 40


@dataclass(frozen=True)
class BoxRecord:
    """One record of a box file.

    Attributes:
        where: how messages name it.
        found: its boxes in pixels of the original picture.
        size: (width, height) of the picture for which the boxes were made, where the record gives them.
        image: the picture's path as `image_key` writes it; None where the record has none.
        id: the sample's id; None where the record has none.
        video: of a frame: the video's path; None of a picture.
        frame: number of the frame in its video, from 0, where the record gives it.
        time: seconds at which it is shown, where the record gives them.
    """

    where: str
    found: PictureBoxes
    size: tuple[int, int] | None = None
    image: str | None = None
    id: str | None = None
    video: str | None = None
    frame: int | None = None
    time: float | None = None

    def same_boxes(self, other: BoxRecord) -> bool:
        """True if both hold the same boxes, labels and scores."""
        return (
            np.array_equal(self.found.boxes, other.found.boxes)
            and self.found.labels == other.found.labels
            and np.array_equal(self.found.scores, other.found.scores)
        )


def not_json(path: str, told: str) -> str:
    """Returns ``is not valid JSON`` and where, of what `read_keyed_records` yields in a record's place."""
    start = f"malformed JSON: '{path}' "
    return f"is not valid JSON: {told.removeprefix(start)}"


def image_key(path: str) -> str:
    """Returns the one way to write a picture's path."""
    return posixpath.normpath(path.replace("\\", "/"))


def parse_records(key: str | None, number: int, value: Any) -> list[BoxRecord]:
    """Checks one record: of a picture, or of the frames of a video.

    Args:
        key: see `parse_box_record`.
        number: see there.
        value: see there; or ``{"video", "frames": [{"time" or "index", "boxes", "labels", "scores"}, ...], "width"?,
            "height"?}``.

    Raises:
        XTunerError: it is malformed; the message says in what.
    """
    if isinstance(value, Mapping) and "frames" in value:
        return _parse_video(key, number, value)
    return [parse_box_record(key, number, value)]


def _parse_video(key: str | None, number: int, value: Mapping[str, Any]) -> list[BoxRecord]:
    where = f"box record number {number}" if key is None else f"box record '{key}'"
    video = value.get("video", key)
    if not isinstance(video, str) or not video:
        raise XTunerError(f"{where} has 'frames' but no 'video': add the video's path as 'video'.")
    check_text(video, f"{where}: 'video'")
    where += "" if key is not None else f" ('{video}')"
    frames = value["frames"]
    if not isinstance(frames, list):
        raise XTunerError(f"{where}: 'frames' is {str(frames)[:_SHOWN]!r}, expected a list of objects, one a frame.")
    size = _size(value, where)
    return [_parse_frame(frame, image_key(video), size, f"{where}, frame {i}") for i, frame in enumerate(frames, 1)]


def _parse_frame(value: Any, video: str, size: tuple[int, int] | None, where: str) -> BoxRecord:
    if not isinstance(value, Mapping):
        raise XTunerError(f"{where} is a {type(value).__name__}: expected an object with 'time' or 'index', and boxes.")
    index, time = value.get("index"), value.get("time")
    if index is None and time is None:
        raise XTunerError(f"{where} has neither 'time' nor 'index': say which frame it is, by seconds or number.")
    if index is not None and not (_is_side(index) or index == 0):
        raise XTunerError(f"{where}: 'index' is {str(index)[:_SHOWN]!r}, expected the number of a frame, from 0.")
    if time is not None and not (isinstance(time, (int, float)) and 0 <= time < _LARGEST_SIDE):
        raise XTunerError(f"{where}: 'time' is {str(time)[:_SHOWN]!r}, expected seconds from the video's beginning.")
    found = _parse_boxes(value, where)
    return BoxRecord(where, found, size, video=video, frame=index, time=None if time is None else float(time))


def parse_box_record(key: str | None, number: int, value: Any) -> BoxRecord:
    """Checks one record.

    Args:
        key: its name where the file is an object: a path or an id, for what the record does not say itself.
        number: its place in the file, from 1.
        value: ``{"image"?, "id"?, "boxes", "labels", "scores", "width"?, "height"?}``.

    Raises:
        XTunerError: it is malformed; the message says in what.
    """
    where = f"box record number {number}" if key is None else f"box record '{key}'"
    if not isinstance(value, Mapping):
        raise XTunerError(
            f"{where} is of type {type(value).__name__}: expected an object with boxes, labels and scores."
        )
    image, sample_id = value.get("image", key), value.get("id", key)
    if image is None and sample_id is None:
        raise XTunerError(f"{where} has neither 'image' nor 'id': add the picture's path as 'image'.")
    for name, said in {"image": image, "id": sample_id}.items():
        if not isinstance(said, (str, int, float, type(None))):
            raise XTunerError(f"{where}: '{name}' is {str(said)[:_SHOWN]!r}, expected a text.")
    if key is None:
        where += f" ('{sample_id if image is None else image}')"
    check_text(f"{image}{sample_id}", f"{where}: 'image' or 'id'")
    return BoxRecord(
        where,
        _parse_boxes(value, where),
        _size(value, where),
        None if image is None else image_key(str(image)),
        None if sample_id is None else str(sample_id),
    )


def parse_own_boxes(fields: Mapping[str, Any], images: Sequence[str], where: str) -> list[BoxRecord]:
    """Reads the boxes that a training record gives of its own pictures.

    Args:
        fields: ``boxes`` and, where they are given, ``labels`` ("object" where not), ``scores`` (1 where not),
            ``width`` and ``height``. Of one picture: N boxes, N labels, ...; of any number of pictures: a list with
            those of each.
        images: the pictures.
        where: how messages name the record.

    Raises:
        XTunerError: they are malformed; the message says in what.
    """
    boxes = fields["boxes"]
    where = f"the boxes of {where}"
    if not isinstance(boxes, list):
        raise XTunerError(f"{where} are {str(boxes)[:_SHOWN]!r}, expected a list.")
    if len(images) == 1 and not _is_per_picture(boxes):
        parts = [dict(fields)]
    else:
        parts = [{} for _ in images]
        for name, values in fields.items():
            if not isinstance(values, list) or len(values) != len(images):
                found = counted(len(values), "entries") if isinstance(values, list) else repr(str(values)[:_SHOWN])
                raise XTunerError(
                    f"{where}: '{name}' has {found}, expected one for each of {counted(len(images), 'pictures')}."
                )
            for part, value in zip(parts, values, strict=True):
                part[name] = value
    return [_own_record(part, image, f"{where}, picture '{image}'") for part, image in zip(parts, images, strict=True)]


def _own_record(part: dict[str, Any], image: str, where: str) -> BoxRecord:
    values = {**part, "boxes": [] if part.get("boxes") is None else part["boxes"]}
    if isinstance(values["boxes"], list):
        for name, value in (("labels", "object"), ("scores", 1.0)):
            if values.get(name) is None:
                values[name] = [value] * len(values["boxes"])
    return BoxRecord(where, _parse_boxes(values, where), _size(values, where), image_key(image))


def _is_per_picture(boxes: list[Any]) -> bool:
    """True for [[[x0, y0, x1, y1], ...]], False for [[x0, y0, x1, y1], ...]."""
    return len(boxes) == 1 and (
        boxes[0] is None or (isinstance(boxes[0], list) and all(isinstance(box, list) for box in boxes[0]))
    )


def _parse_boxes(value: Mapping[str, Any], where: str) -> PictureBoxes:
    for key in ("boxes", "labels", "scores"):
        if not isinstance(value.get(key), list):
            raise XTunerError(
                f"{where}: '{key}' is {str(value.get(key))[:40]!r}, expected a list (empty if there are no boxes)."
            )
    if len(value["boxes"]) > MOST_BOXES:
        raise XTunerError(
            f"{where}: {len(value['boxes']):,} boxes, but at most {MOST_BOXES:,} are allowed: keep those with the "
            "best scores."
        )
    boxes = _numbers(value["boxes"], where, "boxes", "[x0, y0, x1, y1] in pixels each")
    scores = _numbers(value["scores"], where, "scores", "one number each")
    count = len(value["boxes"])
    if boxes.shape not in ((count, 4), (0,)):
        raise XTunerError(f"{where}: 'boxes' has the shape {boxes.shape}, expected [x0, y0, x1, y1] in pixels each.")
    if not np.isfinite(scores).all():
        raise XTunerError(f"{where}: a score is NaN or infinite: expected finite numbers, as scores choose the boxes.")
    if scores.shape != (count,) or len(value["labels"]) != count:
        raise XTunerError(
            f"{where}: {counted(count, 'boxes')}, {counted(len(value['labels']), 'labels')}, "
            f"{counted(len(value['scores']), 'scores')}; expected the same number of each."
        )
    labels = tuple(map(str, value["labels"]))
    check_text("".join(labels), f"{where}: a label")
    return PictureBoxes(boxes.reshape(-1, 4), labels, scores)


def _numbers(values: list[Any], where: str, key: str, expected: str) -> np.ndarray:
    try:
        array = np.asarray(values)
        if array.size and array.dtype.kind not in "iuf":
            raise ValueError(f"values of type {array.dtype}")
        with np.errstate(over="ignore"):
            return array.astype(np.float32)
    except (ValueError, TypeError, OverflowError) as error:
        raise XTunerError(f"{where}: '{key}' cannot be read ({error}), expected {expected}.") from error


def _size(value: Mapping[str, Any], where: str) -> tuple[int, int] | None:
    width: Any = value.get("width")
    height: Any = value.get("height")
    if width is None and height is None:
        return None
    if not (_is_side(width) and _is_side(height)):
        found = f"width={str(width)[:_SHOWN]}, height={str(height)[:_SHOWN]}"
        raise XTunerError(f"{where}: {found}; expected both in whole pixels, or neither.")
    return width, height


def _is_side(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _LARGEST_SIDE
