"""Box files: which boxes a detector found in which picture."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from mg_llava.boxes.index import box_index_folder, read_record
from mg_llava.boxes.records import BoxRecord, image_key, not_json, parse_box_record
from mg_llava.boxes.selection import PictureBoxes, no_boxes
from xtuner.data.records.json_stream import Record
from xtuner.data.records.records import read_keyed_records
from xtuner.data.store.arrow_rows import ArrowRows
from xtuner.data.store.key_table import KeyTable
from xtuner.errors import ProblemsError, XTunerError, counted


class BoxStore:
    """The boxes of a box file, found by picture path, or by sample id as published files have it.

    The file is a JSON list (or JSONL) of records ``{"image"?, "id"?, "boxes": [[x0, y0, x1, y1], ...], "labels",
    "scores", "width"?, "height"?}`` (boxes in pixels of the original picture; `image` relative to the image
    folder) and of videos, ``{"video", "frames": [{"time" or "index", "boxes", "labels", "scores"}, ...], ...}``; or an
    object of them whose keys are the pictures, ids or videos. A picture without a record has no boxes; that is normal.

    The file is parsed once and kept as an index in the cache; from then on opening it costs the same for any number of
    records, and all processes of a machine share its pages. Pickles as its path.

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
        folder = box_index_folder(self.path)
        index = json.loads((folder / "index.json").read_text())
        self.problems: list[str] = index["problems"]
        self._repeated: dict[str, dict[str, tuple[str, str]]] = index["repeated"]
        self._rows = ArrowRows([folder / "boxes.arrow"], [index["rows_of_batches"]])
        names = ("images", "ids", "videos")
        self._images, self._ids, self._videos = (KeyTable(folder / f"{name}.keys") for name in names)
        if check and self.problems:
            raise ProblemsError(f"box file '{self.path}'", self.problems)

    def __len__(self) -> int:
        """Number of good records, each frame of a video one."""
        return len(self._rows)

    def __reduce__(self) -> tuple[type[BoxStore], tuple[str, bool]]:
        return type(self), (self.path, False)

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
        if image_path is not None:
            key = image_key(image_path)
            for record in map(self._record, self._images.rows(key)):
                if record.image == key:
                    self._refuse_repeated("image", key)
                    return record
        if sample_id is None:
            return None
        for record in map(self._record, self._ids.rows(str(sample_id))):
            if record.id != str(sample_id):
                continue
            if num_images > 1:
                raise XTunerError(
                    f"box file '{self.path}' has boxes for id '{sample_id}' only, but that sample has {num_images} "
                    "pictures: give each box record the path of its picture as 'image'."
                )
            self._refuse_repeated("id", str(sample_id))
            return record
        return None

    def frames_of(self, video: str) -> list[BoxRecord]:
        """Returns the records of the frames of a video, by its path."""
        key = image_key(video)
        return [record for record in map(self._record, self._videos.rows(key)) if record.video == key]

    def records(self) -> Iterator[BoxRecord]:
        """Yields all good records, in the file's order."""
        return map(self._record, range(len(self)))

    def _record(self, row: int) -> BoxRecord:
        return read_record(self._rows, row)

    def _refuse_repeated(self, kind: str, key: str) -> None:
        if key not in self._repeated[kind]:
            return
        first, other = self._repeated[kind][key]
        raise XTunerError(
            f"box file '{self.path}' holds {kind} '{key}' several times with different boxes "
            f"({first} and {other}): "
            + ("keep one of them." if kind == "image" else "give each record the path of its picture as 'image'.")
        )


def check_box_file(path: str) -> None:
    """Refuses what is no box file, by its first record: a file may have millions.

    Raises:
        XTunerError: it cannot be read, holds no record, or the first one is malformed.
    """
    try:
        first = next(read_keyed_records(path, "box file"), None)
    except OSError as error:
        raise XTunerError(f"box file '{path}' cannot be read ({error.strerror}): expected a JSON file.") from error
    if not isinstance(first, Record):
        reason = not_json(path, first) if first else "holds no record: expected one for each picture"
        raise XTunerError(f"box file '{path}' {reason}.")
    try:
        parse_box_record(first.key, first.index + 1, first.value)
    except XTunerError as error:
        raise XTunerError(f"'{path}' is no box file: {error}") from error


def nearest_frame(records: Sequence[BoxRecord], number: int, time: float, tolerance: float) -> BoxRecord | None:
    """Returns the record of a video that is nearest to one of its frames.

    A record that says no time counts at its number; how long a frame lasts is then taken from this one.

    Args:
        records: of the video's frames.
        number: of the frame, from 0.
        time: seconds at which it is shown.
        tolerance: most seconds between both; None is returned where all are further away.
    """
    best: tuple[float, BoxRecord] | None = None
    for record in records:
        if record.frame == number:
            return record
        if record.time is not None:
            distance = abs(record.time - time)
        elif number and record.frame is not None:
            distance = abs(record.frame - number) * time / number
        else:
            continue
        if distance <= tolerance and (best is None or distance < best[0]):
            best = distance, record
    return None if best is None else best[1]


def other_size_message(image_path: str, size: tuple[int, int], made_for: tuple[int, int], where: str) -> str:
    """Says that a picture of (width, height) `size` is not the one that the boxes of record `where` were made for.

    They would point at the wrong places, so nobody should go on with them.
    """
    return (
        f"picture '{image_path}' has {size[0]}x{size[1]} pixels, but {where} was made for {made_for[0]}x{made_for[1]}: "
        "make the boxes again, or set the image processor's apply_exif_orientation as it was when they were made."
    )


def no_match_message(box_path: str, num_pictures: int) -> str:
    """Says that a box file knows none of the pictures."""
    return (
        f"box file '{box_path}' has no record for any of the {counted(num_pictures, 'pictures')}, by path or id: it "
        "probably belongs to another data set: set box_json_path to the right one, or to None to train without "
        "object tokens."
    )


def read_boxes(box_path: str, image_path: str) -> PictureBoxes:
    """Returns a picture's boxes from a box file: those of its path or a tail of it, or those of the file's only record.

    Raises:
        XTunerError: the file is no box file, or has several records and none of this picture.
    """
    store = BoxStore(box_path)
    parts = Path(image_path).parts
    for start in range(len(parts)):
        record = store.find(Path(*parts[start:]).as_posix(), Path(image_path).stem)
        if record is not None:
            return record.found
    if len(store) != 1:
        raise XTunerError(
            f"box file '{box_path}' has {counted(len(store), 'records')} and none of '{image_path}': give a record "
            "with this picture as 'image', or a file with one record only, or --boxes none."
        )
    return next(store.records()).found
