"""From messages to turns: training, chat, server and processor read a conversation by these rules, so what is asked is
the beginning of what was trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from xtuner.data.records.messages import Message, is_video
from xtuner.data.text.templates import Place, Turn, split_pictures, user_words
from xtuner.errors import XTunerError, counted

PARTS_JOINT = "\n"
"""Stands between the parts of a message."""


@dataclass(frozen=True)
class Dialogue:
    """The turns of a conversation.

    Attributes:
        turns: the last one unanswered where the user has the last word.
        pictures: the image parts in the order of their places.
        num_unasked: answers before the first question, which are left out.
        videos: the video parts in the order of their places.
    """

    turns: tuple[Turn, ...]
    pictures: tuple[Mapping[str, Any], ...]
    num_unasked: int
    videos: tuple[Mapping[str, Any], ...] = ()


def read_turns(messages: Sequence[Message], places_in_text: bool = False, videos_in_text: bool = False) -> Dialogue:
    """Joins messages to turns.

    Answers before the first question are left out. Several messages of the user in a row are joined as they are; an
    answer right after an answer becomes a turn with an empty question; system messages, wherever they stand, go before
    the turn that is answered next. A picture or video alone in its message stands first there, then a newline and the
    stripped text; several stay where they were written, because the text refers to their places.

    Args:
        messages: in order.
        places_in_text: an ``<image>`` in a text of the user is the place of a picture, as LLaVA's records have it.
        videos_in_text: likewise a ``<video>`` that of a video.
    """
    turns: list[Turn] = []
    question: list[str | Place] | None = None
    system: list[str] = []
    num_unasked = 0
    for message in messages:
        if message.role == "system":
            system.append(_text(message))
        elif message.role == "user":
            question = [*(question or ()), *_picture_first(_words(message, places_in_text, videos_in_text))]
        elif question is None and not turns:
            num_unasked += 1
        else:
            turns.append(Turn(user_words(question or ()), _text(message), "\n".join(system), message.supervised))
            question, system = None, []
    if question is not None:
        turns.append(Turn(user_words(question), None, "\n".join(system)))
    pictures = tuple(part for message in messages for part in message.pictures)
    videos = tuple(part for message in messages for part in message.videos)
    return Dialogue(tuple(turns), pictures, num_unasked, videos)


def with_frames(turns: Sequence[Turn], counts: Sequence[int]) -> tuple[Turn, ...]:
    """Returns the turns with the places of frames, one behind the other, where videos stood.

    Args:
        turns: any.
        counts: frames of each video, in the order of their places.

    Raises:
        XTunerError: another number of videos.
    """
    places = sum(turn.num_videos for turn in turns)
    if places != len(counts):
        raise XTunerError(
            f"the conversation has {counted(places, 'places')} of videos but {counted(len(counts), 'videos')}: give "
            "one video for each place."
        )
    rest = iter(counts)
    return tuple(
        replace(turn, input=user_words(list(_frame_places(turn.parts, rest)))) if turn.num_videos else turn
        for turn in turns
    )


def _frame_places(parts: Sequence[str | Place], counts: Iterator[int]) -> Iterator[str | Place]:
    for part in parts:
        yield from [Place.FRAME] * next(counts) if part is Place.VIDEO else [part]


def _text(message: Message) -> str:
    return PARTS_JOINT.join(part for part in message.parts if isinstance(part, str))


def _words(message: Message, places_in_text: bool, videos_in_text: bool) -> list[str | Place]:
    words: list[str | Place] = []
    for number, part in enumerate(message.parts):
        if number:
            words.append(PARTS_JOINT)
        if not isinstance(part, str):
            words.append(Place.VIDEO if is_video(part) else Place.PICTURE)
            continue
        texts = split_pictures(part, Place.VIDEO) if videos_in_text else (part,)
        for text in texts:
            words += split_pictures(text) if places_in_text and isinstance(text, str) else (text,)
    return words


def _picture_first(words: list[str | Place]) -> list[str | Place]:
    places: list[str | Place] = [word for word in words if isinstance(word, Place)]
    if len(places) != 1:
        return words
    text = "".join(word for word in words if isinstance(word, str)).strip()
    return [*places, f"\n{text}"] if text else places
