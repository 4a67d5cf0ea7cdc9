"""LLaVA records (``id``, ``image``, ``conversations``) to turns; every fault is named with its record."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from unicodedata import category

from xtuner.constants import IMAGE_TOKEN, VIDEO_TOKEN
from xtuner.data.records.formats import RecordContent, own_boxes, read_record
from xtuner.data.records.messages import check_text
from xtuner.data.records.records import Record
from xtuner.data.text.templates import Place, Turn
from xtuner.data.text.turns import read_turns, with_frames
from xtuner.errors import SampleError, XTunerError


class RecordError(XTunerError):
    """One faulty record; the text before the first colon is the kind of fault, by which reports count."""

    def __init__(self, kind: str, where: str, detail: str) -> None:
        super().__init__(f"{kind}: {where}: {detail}")


@dataclass(frozen=True)
class Conversation:
    """One parsed record.

    Attributes:
        id: the record's ``id`` as a string; ``"#<number>"`` where it has none.
        images: paths as the record gives them, in order; one per ``<image>`` in the turns.
        turns: answered turns; empty where nobody answers (such a record is dropped and counted, it is no
            fault).
        index: number of the record in its file, from 0.
        notes: what it has that is left out, or read in another way than one might think.
        boxes: fields of the record that give the boxes of its pictures, as they are; None where it gives none.
        images_cut: pictures that it had more.
        videos: as the record gives them, in order; one per `Place.VIDEO` in the turns. Where frames have taken their
            places, these are among the images and there are no videos.
    """

    id: str
    images: tuple[str, ...]
    turns: tuple[Turn, ...]
    index: int
    notes: tuple[str, ...] = ()
    boxes: Mapping[str, Any] | None = None
    images_cut: int = 0
    videos: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        """How messages name the record."""
        return f"record '{self.id}' (number {self.index + 1})"

    def without_last_images(self, count: int) -> Conversation:
        """Returns the conversation without its last `count` pictures."""
        return replace(self, images=self.images[: len(self.images) - count], images_cut=self.images_cut + count)

    def with_frames(self, frames: Sequence[Sequence[str]], notes: Sequence[str] = ()) -> Conversation:
        """Returns the conversation with frames in the places of its videos.

        Args:
            frames: of each video, in order of time, as a picture's path is given.
            notes: what is odd about them.
        """
        turns = with_frames(self.turns, [len(one) for one in frames])
        pictures, videos = iter(self.images), iter(frames)
        images: list[str] = []
        for part in (part for turn in self.turns for part in turn.parts):
            if part is Place.PICTURE:
                images.append(next(pictures))
            elif part is Place.VIDEO:
                images += next(videos)
        return replace(self, images=tuple(images), turns=turns, videos=(), notes=(*self.notes, *notes))


def parse_record(record: Any, index: int, videos: bool = False) -> Conversation:
    """Parses one record, of LLaVA's form or any of `xtuner.data.records.formats`.

    The turns are those of `read_turns`; questions after the last answer are left out.

    Args:
        record: ``{"id"?, "image"?: path | list of paths | None, "conversations": [{"from", "value"}, ...]}``.
        index: number of the record in its file, from 0.
        videos: take records with videos; else they are refused.

    Raises:
        RecordError: what `read_record` does not understand, or another number of ``<image>`` than of pictures, or of
            ``<video>`` than of videos.
    """
    if not isinstance(record, Mapping):
        raise RecordError(
            "not a record", f"record number {index + 1}", f"expected an object, found {type(record).__name__}"
        )
    value = record.get("id")
    name = f"#{index + 1}" if value is None else str(value)
    where = f"record '{name}' (number {index + 1})"
    try:
        check_text(name, "the id")
        content = read_record(record, videos)
    except SampleError as error:
        raise RecordError(error.kind, where, str(error)) from error
    dialogue = read_turns(content.messages, content.places_in_text, content.videos_in_text)
    turns = dialogue.turns
    notes = list(content.notes)
    if dialogue.num_unasked:
        notes.append("an answer before the first question, left out")
    if turns[-1].output is None:
        turns = turns[:-1]
        notes += ["a last question without an answer, left out"] if turns else []
    if turns:
        _check_counts(turns, content, where)
    notes += _empty(turns)
    return Conversation(name, content.images, turns, index, tuple(notes), own_boxes(record), videos=content.videos)


def iter_conversations(
    records: Iterable[Record | str], problems: list[str], videos: bool = False
) -> Iterator[Conversation]:
    """Yields the good ones of `records`, see `RecordSource.records`; a sentence per faulty one is appended to
    `problems`; see `parse_record`.
    """
    for item in records:
        if not isinstance(item, Record):
            problems.append(item)
            continue
        try:
            yield parse_record(item.value, item.index, videos)
        except RecordError as error:
            problems.append(str(error))


def _empty(turns: Sequence[Turn]) -> Iterator[str]:
    """What the turns teach without a word being asked or said."""
    texts = ("".join(map(str, turn.parts)) for turn in turns if not turn.num_pictures + turn.num_videos)
    if any(map(_is_blank, texts)):
        yield "an empty question"
    answers = {turn.output for turn in turns if turn.supervised and turn.output is not None}
    if "" in answers:
        yield "an empty answer (only its end is learned)"
    if any(answer and _is_blank(answer) for answer in answers):
        yield "an answer of spaces only"


def _is_blank(text: str) -> bool:
    """White space, and characters without width (U+200B, U+FEFF)."""
    return not text.strip() or all(one.isspace() or category(one) == "Cf" for one in text)


def _check_counts(turns: Sequence[Turn], content: RecordContent, where: str) -> None:
    shown = sum(turn.num_videos for turn in turns)
    if shown != len(content.videos):
        raise RecordError(
            "wrong number of videos",
            where,
            f"{shown} {VIDEO_TOKEN} in the answered human messages, but 'video' lists {len(content.videos)}; write "
            f"{VIDEO_TOKEN} once per video",
        )
    places = sum(turn.num_pictures for turn in turns)
    if places != len(content.images):
        hint = f"write {IMAGE_TOKEN} once per picture"
        if content.suspect is not None:
            hint = f"if {content.suspect!r} holds the picture, write it as 'image'"
        raise RecordError(
            "wrong number of pictures",
            where,
            f"{places} {IMAGE_TOKEN} in the answered human messages, but 'image' lists {len(content.images)}; {hint}",
        )
