"""Box files: which boxes a detector found in which picture."""

from __future__ import annotations

import json
import os
import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mg_llava.boxes import PictureBoxes, no_boxes
from xtuner.errors import ProblemsError, XTunerError


@dataclass(frozen=True)
class BoxRecord:
    """One record of a box file.

    Attributes:
        where: how messages name it.
        found: its boxes in pixels of the original picture.
        size: (width, height) of the picture for which the boxes were made, where the record gives them.
    """

    where: str
    found: PictureBoxes
    size: tuple[int, int] | None = None

    def same_boxes(self, other: BoxRecord) -> bool:
        """True if both hold the same boxes, labels and scores."""
        return (
            np.array_equal(self.found.boxes, other.found.boxes)
            and self.found.labels == other.found.labels
            and np.array_equal(self.found.scores, other.found.scores)
        )


class BoxStore:
    """The boxes of a box file, found by picture path, or by sample id as published files have it.

    The file is a JSON list of records ``{"image"?, "id"?, "boxes": [[x0, y0, x1, y1], ...], "labels",
    "scores", "width"?, "height"?}`` (boxes in pixels of the original picture; `image` relative to the image
    folder), or an object of them whose keys are the pictures or ids. A picture without a record has no boxes;
    that is normal.

    Args:
        path: the box file.
        check: raise at once for malformed records; else they are left out and stand in `problems`.

    Attributes:
        problems: one sentence per malformed record.

    Raises:
        XTunerError: the file is missing or is no JSON of that form.
        ProblemsError: records are malformed (only with `check`).
    """

    def __init__(self, path: str | os.PathLike[str], check: bool = True) -> None:
        self.path = os.fspath(path)
        self.problems: list[str] = []
        self._by_image: dict[str, BoxRecord] = {}
        self._by_id: dict[str, BoxRecord] = {}
        self._repeated: dict[str, tuple[str, str]] = {}
        for key, number, value in _entries(self.path):
            try:
                self._add(key, number, value)
            except XTunerError as error:
                self.problems.append(str(error))
        if check and self.problems:
            raise ProblemsError(f"box file '{self.path}'", self.problems)

    def __len__(self) -> int:
        """Number of pictures or ids that can be looked up."""
        return len(self._by_image.keys() | self._by_id.keys())

    def lookup(self, image_path: str | None, sample_id: str | int | None = None, num_images: int = 1) -> PictureBoxes:
        """Returns the boxes of a picture, none where the file does not know it.

        Args:
            image_path: the picture, relative to the image folder; tried first.
            sample_id: the sample's id, tried where the path is not in the file.
            num_images: pictures of the sample; an id cannot say which of several it means.

        Raises:
            XTunerError: the key that fits stands for several records with different boxes, or an id is all
                that fits a sample of several pictures.
        """
        record = self.find(image_path, sample_id, num_images)
        return no_boxes() if record is None else record.found

    def find(self, image_path: str | None, sample_id: str | int | None = None, num_images: int = 1) -> BoxRecord | None:
        """Like `lookup`, but the whole record, and None where the file does not know the picture."""
        image_key = None if image_path is None else _image_key(image_path)
        if image_key in self._by_image:
            self._refuse_repeated(f"image {image_key}")
            return self._by_image[image_key]
        id_key = None if sample_id is None else str(sample_id)
        if id_key is None or id_key not in self._by_id:
            return None
        if num_images > 1:
            raise XTunerError(
                f"box file '{self.path}' has boxes for id '{id_key}' only, but that sample has {num_images} "
                "pictures: give each box record the path of its picture as 'image'."
            )
        self._refuse_repeated(f"id {id_key}")
        return self._by_id[id_key]

    def _refuse_repeated(self, name: str) -> None:
        if name not in self._repeated:
            return
        first, other = self._repeated[name]
        key, _, value = name.partition(" ")
        raise XTunerError(
            f"box file '{self.path}' holds {key} '{value}' several times with different boxes "
            f"({first} and {other}): "
            + ("keep one of them." if key == "image" else "give each record the path of its picture as 'image'.")
        )

    def _add(self, key: str | None, number: int, value: Any) -> None:
        where = f"box record number {number}" if key is None else f"box record '{key}'"
        if not isinstance(value, Mapping):
            raise XTunerError(f"{where} is a {type(value).__name__}: expected an object with boxes, labels and scores.")
        # the keys of an object may be paths or ids: they stand for what the record does not say itself
        image, sample_id = value.get("image", key), value.get("id", key)
        if image is None and sample_id is None:
            raise XTunerError(f"{where} has neither 'image' nor 'id': add the picture's path as 'image'.")
        if key is None:
            where += f" ('{sample_id if image is None else image}')"
        record = _parse(value, where)
        if image is not None:
            self._put(self._by_image, "image", _image_key(str(image)), record)
        if sample_id is not None:
            self._put(self._by_id, "id", str(sample_id), record)

    def _put(self, table: dict[str, BoxRecord], kind: str, key: str, record: BoxRecord) -> None:
        first = table.setdefault(key, record)
        if first is not record and not first.same_boxes(record):
            self._repeated.setdefault(f"{kind} {key}", (first.where, record.where))


def other_size_message(image_path: str, size: tuple[int, int], record: BoxRecord) -> str:
    """Says that a picture of (width, height) `size` is not the one that the boxes of `record` were made for.

    They would point at the wrong places, so nobody should go on with them.
    """
    made_for = "x".join(map(str, record.size or ()))
    return (
        f"picture '{image_path}' has {size[0]}x{size[1]} pixels, but {record.where} was made for {made_for}: "
        "make the boxes again, or set the image processor's apply_exif_orientation as it was for them."
    )


def no_match_message(box_path: str, num_pictures: int) -> str:
    """Says that a box file knows none of the pictures."""
    return (
        f"box file '{box_path}' fits none of the {num_pictures:,} pictures by path or id: is it the file of this data "
        "set? box_json_path=None goes without object tokens."
    )


def _image_key(path: str) -> str:
    return posixpath.normpath(path.replace("\\", "/"))


def _entries(path: str) -> Iterator[tuple[str | None, int, Any]]:
    """Yields (key of an object or None, number from 1, record)."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            content = json.load(file)
    except OSError as error:
        raise XTunerError(
            f"box file '{path}' cannot be read ({error.strerror}): check box_json_path, or set it to None "
            "to train without boxes."
        ) from error
    except json.JSONDecodeError as error:
        raise XTunerError(
            f"box file '{path}' is not valid JSON: line {error.lineno}, column {error.colno}: {error.msg}."
        ) from error
    if isinstance(content, Mapping):
        for number, (key, value) in enumerate(content.items(), start=1):
            yield str(key), number, value
    elif isinstance(content, list):
        for number, value in enumerate(content, start=1):
            yield None, number, value
    else:
        raise XTunerError(
            f"box file '{path}' holds a {type(content).__name__}: expected a list or an object of records."
        )


def _parse(value: Mapping[str, Any], where: str) -> BoxRecord:
    for key in ("boxes", "labels", "scores"):
        if not isinstance(value.get(key), list):
            raise XTunerError(
                f"{where}: '{key}' is {str(value.get(key))[:40]!r}, expected a list (empty without boxes)."
            )
    boxes = _numbers(value["boxes"], where, "boxes", "[x0, y0, x1, y1] in pixels each")
    scores = _numbers(value["scores"], where, "scores", "one number each")
    count = len(value["boxes"])
    if boxes.shape not in ((count, 4), (0,)):
        raise XTunerError(f"{where}: 'boxes' has the shape {boxes.shape}, expected [x0, y0, x1, y1] in pixels each.")
    if scores.shape != (count,) or len(value["labels"]) != count:
        raise XTunerError(
            f"{where}: {count} boxes, {len(value['labels'])} labels, {len(value['scores'])} scores; "
            "expected as many of each."
        )
    labels = tuple(str(label) for label in value["labels"])
    return BoxRecord(where, PictureBoxes(boxes.reshape(-1, 4), labels, scores), _size(value, where))


def _numbers(values: list[Any], where: str, key: str, expected: str) -> np.ndarray:
    try:
        array = np.asarray(values)
        if array.size and array.dtype.kind not in "iuf":
            raise ValueError(f"values of type {array.dtype}")
        return array.astype(np.float32)
    except (ValueError, TypeError, OverflowError) as error:
        raise XTunerError(f"{where}: '{key}' cannot be read ({error}), expected {expected}.") from error


def _size(value: Mapping[str, Any], where: str) -> tuple[int, int] | None:
    width, height = value.get("width"), value.get("height")
    if width is None and height is None:
        return None
    if not (isinstance(width, int) and isinstance(height, int) and width > 0 and height > 0):
        raise XTunerError(f"{where}: width={width!r}, height={height!r}; expected both in whole pixels, or neither.")
    return width, height
