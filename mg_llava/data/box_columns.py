"""What preparing adds to the text of a sample: its boxes, chosen and mapped, and the number of all its tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from mg_llava.boxes.records import BoxRecord, parse_own_boxes
from mg_llava.boxes.selection import BoxSelection, PictureBoxes, drop_lowest, no_boxes
from mg_llava.boxes.sense import odd_boxes
from mg_llava.boxes.store import BoxStore, nearest_frame
from mg_llava.pictures.preprocess import ImageProcessor
from mg_llava.videos.places import read_frame_place
from xtuner.data.sources.places import picture_name, without_name
from xtuner.data.store.cache import remembered_digest
from xtuner.data.store.prepared import PreparedRow
from xtuner.data.text.conversations import Conversation
from xtuner.data.text.encoder import Added
from xtuner.data.text.tokenizing import Encoded
from xtuner.errors import XTunerError

NOT_KNOWN = "pictures not in the box file"
LEFT_OUT = "samples longer than the context left out"
ALL_BOXES = "boxes"
CUT = "boxes cut for the context"
NO_FRAME = "frames without boxes near them"
NOT_SAMPLED = "boxed frames that are not sampled"
VIDEO_LIMIT = "boxes cut for the limit of a video"
_NEW_SETTINGS = ("limit_video", "frame_tolerance")
"""Of the selection; left out of the settings where they are the defaults, as in folders from before there were any."""
Size = tuple[int, int]


@dataclass(frozen=True)
class PreparedBoxes:
    """The chosen boxes of one picture.

    Attributes:
        found: in the frame of the square where `size` is known, else in the picture's.
        size: (width, height) of the picture that they were made for, where the box file says it.
        where: how messages name their record; "" where there is none, or where it is not known any more.
    """

    found: PictureBoxes
    size: Size | None
    where: str = ""


class BoxColumns:
    """Adds ``box_counts`` and ``box_sizes`` per picture and ``boxes``, ``box_labels``, ``box_scores`` of all.

    Where the box file gives a picture's size, its boxes stand in the frame of the square and those outside the picture
    are gone; else they stand in the picture's frame, and are mapped when the picture is read.

    Args:
        box_json_path: see `BoxStore`; None = only the boxes that records give of their own pictures; "" = no boxes.
        selection: which boxes become tokens.
        processor: says where the boxes go.
        max_length: most text tokens of a sample.
        context_length: most tokens of all kinds; longer samples are dropped, boxes that pass it are not counted.
    """

    fields = {
        "box_counts": pa.list_(pa.int32()),
        "box_sizes": pa.list_(pa.int32()),
        "boxes": pa.list_(pa.float32()),
        "box_scores": pa.list_(pa.float32()),
        "box_labels": pa.list_(pa.string()),
    }

    def __init__(
        self,
        box_json_path: str | None,
        selection: BoxSelection,
        processor: ImageProcessor,
        max_length: int,
        context_length: int | None,
    ) -> None:
        self.box_json_path = box_json_path or None
        self.takes_own = box_json_path != ""
        self.selection = selection
        self.processor = processor
        self.max_length = max_length
        self.context_length = context_length
        self.image_tokens = processor.image_tokens
        self._store: BoxStore | None = None

    def settings(self) -> dict[str, Any]:
        """Describes everything that the columns depend on, as JSON can hold it."""
        images = self.image_tokens
        settings: dict[str, Any] = {"image_tokens": images.picture, "context_length": self.context_length}
        if images.frame != images.picture:
            settings["frame_tokens"] = images.frame
        if not self.takes_own:
            return {**settings, "box_file": None}
        try:
            digest = None if self.box_json_path is None else remembered_digest(self.box_json_path)
        except OSError as error:
            raise XTunerError(
                f"box file '{self.box_json_path}' cannot be read ({error.strerror}): check box_json_path, or set it to "
                "None to train without boxes."
            ) from error
        frame = {
            "image_size": self.processor.image_size,
            "pad_to_square": self.processor.pad_to_square,
            "crops": self.processor.statistics.crops,
        }
        selection = asdict(self.selection)
        for name in _NEW_SETTINGS:
            if selection[name] == getattr(BoxSelection(), name):
                del selection[name]
        return {**settings, "box_file": digest, "box_selection": selection, "frame": frame}

    def add(self, conversations: Sequence[Conversation], encoded: Sequence[Encoded]) -> Added:
        """Makes the columns of a batch of samples."""
        if self.box_json_path is not None and self._store is None:
            self._store = BoxStore(self.box_json_path)
        columns: dict[str, list[Any]] = {name: [] for name in self.fields}
        tokens: list[int | None] = []
        counts: Counter[str] = Counter()
        problems: list[str] = []
        for talk, ids in zip(conversations, encoded, strict=True):
            num_ids, num_tokens = len(ids.input_ids), self.image_tokens.count(ids.input_ids)
            room = object_room(self.context_length, num_tokens)
            pictures: list[PreparedBoxes] = []
            if room is not None and room < 0:
                counts[LEFT_OUT] += 1
                tokens.append(None)
            else:
                own: Sequence[BoxRecord | None] = [None] * len(talk.images)
                try:
                    own = own_records(talk) if self.takes_own and talk.boxes else own
                except XTunerError as error:
                    problems.append(f"malformed boxes: {error}")
                try:
                    used = zip(talk.images, own, strict=True)
                    pictures = [self._picture(path, talk, num_ids, counts, record) for path, record in used]
                except XTunerError as error:
                    problems.append(f"ambiguous boxes: sample '{talk.id}': {error}")
                pictures = self._limited(talk, pictures, counts)
                found = sum(len(picture.found.labels) for picture in pictures)
                objects = found if room is None else min(found, room)
                counts[CUT] += found - objects
                tokens.append(num_tokens + objects)
            _append(columns, pictures)
        return Added({**columns}, tokens, counts, problems)

    def _picture(
        self, path: str, talk: Conversation, num_ids: int, counts: Counter[str], record: BoxRecord | None
    ) -> PreparedBoxes:
        """Chooses the boxes of one picture, its record's own or the box file's; what is odd about them is counted."""
        counts["pictures"] += 1
        if record is None and self._store is not None:
            record = find_boxes(self._store, path, talk.id, len(talk.images), self.selection.frame_tolerance)
            counts[NOT_KNOWN] += record is None
        if record is None:
            return PreparedBoxes(no_boxes(), None)
        if not record.found.labels:
            counts["pictures without boxes"] += 1
            return PreparedBoxes(no_boxes(), record.size, record.where)
        counts[ALL_BOXES] += len(record.found.labels)
        for kind, found in odd_boxes(record.found.boxes, record.size).items():
            counts[kind] += int(found.sum())
        chosen = self.selection(*record.found, num_ids=num_ids, max_length=self.max_length, training=True)
        if record.size is None:
            return PreparedBoxes(chosen, None, record.where)
        mapped, kept = self.processor.map_boxes(chosen.boxes, record.size)
        return PreparedBoxes(chosen.take(kept)._replace(boxes=mapped), record.size, record.where)

    def _limited(self, talk: Conversation, pictures: list[PreparedBoxes], counts: Counter[str]) -> list[PreparedBoxes]:
        """Keeps the best boxes of each video together; counts its frames with and without boxes."""
        frames: dict[str, list[int]] = {}
        for number, path in enumerate(talk.images):
            if (place := read_frame_place(path)) is not None:
                frames.setdefault(place.video, []).append(number)
        limited = list(pictures)
        for video, numbers in frames.items():
            if self._store is not None and pictures:
                boxed = frame_records(self._store, video)
                used = {where for number in numbers if (where := pictures[number].where)}
                counts[NO_FRAME] += sum(not pictures[number].where for number in numbers) if boxed else 0
                counts[NOT_SAMPLED] += len(boxed) - len(used)
            if self.selection.limit_video is not None and pictures:
                found = [pictures[number].found for number in numbers]
                kept = keep_best(found, self.selection.limit_video)
                counts[VIDEO_LIMIT] += sum(len(one.labels) for one in found) - sum(len(one.labels) for one in kept)
                for number, boxes in zip(numbers, kept, strict=True):
                    limited[number] = replace(pictures[number], found=boxes)
        return limited


def find_boxes(
    store: BoxStore,
    path: str,
    sample_id: str | None,
    num_images: int,
    tolerance: float = BoxSelection().frame_tolerance,
) -> BoxRecord | None:
    """Returns the record of a box file for a picture: by its place in its source, by its name there, or by the sample;
    for a frame the nearest of its video.

    Args:
        store: the box file.
        path: of the picture, or its place, or the place of a frame.
        sample_id, num_images: see `BoxStore.find`; an id says nothing of which frame is meant.
        tolerance: most seconds between a frame and the record's.

    Raises:
        XTunerError: as `BoxStore.find`.
    """
    frame = read_frame_place(path)
    if frame is not None:
        return nearest_frame(frame_records(store, frame.video), frame.number, frame.time, tolerance)
    place = without_name(path)
    found = None if place == path else store.find(place)
    return store.find(picture_name(path), sample_id, num_images) if found is None else found


def frame_records(store: BoxStore, video: str) -> list[BoxRecord]:
    """Returns the records of a video's frames: by its place in its source, else by its name there.

    Args:
        store: the box file.
        video: its path, or its place.
    """
    place = without_name(video)
    found = [] if place == video else store.frames_of(place)
    return found or store.frames_of(picture_name(video))


def keep_best(found: Sequence[PictureBoxes], room: int) -> list[PictureBoxes]:
    """Keeps the `room` best boxes of several pictures, in their places."""
    counts = [len(picture.labels) for picture in found]
    kept = np.zeros(sum(counts), dtype=bool)
    kept[drop_lowest(np.concatenate([picture.scores for picture in found]), room)] = True
    ends = np.cumsum(counts)[:-1]
    return [picture.take(part) for picture, part in zip(found, np.split(kept, ends), strict=True)]


def own_records(talk: Conversation) -> list[BoxRecord]:
    """Returns the boxes that a record gives of its own pictures, one entry per picture.

    Raises:
        XTunerError: they are malformed.
    """
    cut = ["(cut off)"] * talk.images_cut
    records = parse_own_boxes(talk.boxes or {}, [*map(picture_name, talk.images), *cut], talk.where)
    return records[: len(talk.images)]


def object_room(context_length: int | None, num_tokens: int) -> int | None:
    """Returns for how many object tokens the context has room; None without a bound.

    Args:
        context_length: most tokens of all kinds; None = no bound.
        num_tokens: of text and pictures.
    """
    return None if context_length is None else context_length - num_tokens


def read_boxes(row: PreparedRow, with_labels: bool = False) -> list[PreparedBoxes]:
    """Returns the boxes of each picture of a prepared sample; the labels, slow to read, only if asked for."""
    counts = row.numbers("box_counts").tolist()
    sizes = row.numbers("box_sizes").reshape(-1, 2).tolist()
    boxes = np.array(row.numbers("boxes")).reshape(-1, 4)
    scores = np.array(row.numbers("box_scores"))
    labels = row["box_labels"] if with_labels else [""] * len(scores)
    pictures: list[PreparedBoxes] = []
    start = 0
    for count, (width, height) in zip(counts, sizes, strict=True):
        part = slice(start, start + count)
        found = PictureBoxes(boxes[part], tuple(labels[part]), scores[part])
        pictures.append(PreparedBoxes(found, (width, height) if width else None))
        start += count
    return pictures


def _append(columns: dict[str, list[Any]], pictures: Sequence[PreparedBoxes]) -> None:
    columns["box_counts"].append([len(picture.found.labels) for picture in pictures])
    columns["box_sizes"].append([side for picture in pictures for side in picture.size or (0, 0)])
    flat = [picture.found.boxes.reshape(-1) for picture in pictures]
    columns["boxes"].append(np.concatenate(flat) if flat else np.zeros(0, np.float32))
    scores = [picture.found.scores for picture in pictures]
    columns["box_scores"].append(np.concatenate(scores) if scores else np.zeros(0, np.float32))
    columns["box_labels"].append([label for picture in pictures for label in picture.found.labels])
