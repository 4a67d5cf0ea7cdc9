"""The pictures of a question: where they stand among its words, and which boxes belong to them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mg_llava.boxes.selection import BoxSelection
from mg_llava.boxes.store import BoxRecord, BoxStore, nearest_frame
from mg_llava.evaluation.benchmarks.clips import Clip
from mg_llava.evaluation.benchmarks.records import Picture, Question
from mg_llava.videos.places import read_frame_place
from xtuner.constants import IMAGE_TOKEN
from xtuner.errors import XTunerError, counted

_TOLERANCE = BoxSelection().frame_tolerance
_NUMBERED = re.compile(r"<image\s+(\d+)>")
"""How MMMU's questions and options name the place of a picture, numbered from 1."""


def pictures_first(words: str, pictures: Sequence[Picture]) -> tuple[str, list[Picture]]:
    """Returns the words behind one ``<image>`` line a picture, as the training data has it, and the pictures."""
    # some question files hold the token already
    words = words.replace(IMAGE_TOKEN, "").strip("\n") if IMAGE_TOKEN in words else words
    return f"{IMAGE_TOKEN}\n" * len(pictures) + words, list(pictures)


def pictures_in_place(words: str, pictures: Sequence[Picture]) -> tuple[str, list[Picture]]:
    """Puts ``<image>`` where the words say ``<image 1>``, ``<image 2>``, …; pictures they do not name come first.

    Returns:
        The words, and the pictures in the order of their places: one that is named twice is shown twice.

    Raises:
        XTunerError: the words name a picture that the question does not have.
    """
    numbers = [int(number) for number in _NUMBERED.findall(words)]
    unknown = [number for number in numbers if not 1 <= number <= len(pictures)]
    if unknown:
        raise XTunerError(
            f"the question names <image {unknown[0]}>, but its row has {counted(len(pictures), 'pictures')}: "
            "download the benchmark file again."
        )
    unnamed = [picture for number, picture in enumerate(pictures, start=1) if number not in numbers]
    words, first = pictures_first(words, unnamed)
    return _NUMBERED.sub(IMAGE_TOKEN, words), [*first, *(pictures[number - 1] for number in numbers)]


def find_boxes(store: BoxStore | None, question: Question, picture: Picture) -> BoxRecord | None:
    """Returns the boxes of one of a question's pictures, None where the box file does not know it or there is none.

    Those that its record gives win. Of a frame of a video they are those of the nearest frame that the file knows of
    this video, within `BoxSelection.frame_tolerance`; of a whole video those of any of its frames. Else they are looked
    up by the picture's path, then by the question's id if this is its only picture, then by `Picture.box_ids`.

    Raises:
        XTunerError: the id that fits stands for several records with different boxes.
    """
    if picture.boxes is not None or store is None:
        return picture.boxes
    if isinstance(picture, Clip):
        return next(iter(store.frames_of(picture.key)), None)
    if (frame := read_frame_place(picture.key)) is not None:
        return nearest_frame(store.frames_of(frame.video), frame.number, frame.time, _TOLERANCE)
    ids = [question.box_id] if len(question.pictures) == 1 else []
    for sample_id in (*ids, *picture.box_ids) or (None,):
        record = store.find(picture.key or None, sample_id)
        if record is not None:
            return record
    return None
