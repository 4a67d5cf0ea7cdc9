"""Chat messages as servers and transformers have them (role, content) to turns and pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

from PIL import Image

from mg_llava.boxes.selection import PictureBoxes
from mg_llava.inference.videos import place_frames
from mg_llava.videos.shown import VideoFrames
from xtuner.data.records.messages import Message, read_message
from xtuner.data.text.templates import Place, Turn
from xtuner.data.text.turns import read_turns, with_frames
from xtuner.errors import XTunerError

OpenImage = Callable[[Mapping[str, Any]], "tuple[Image.Image, PictureBoxes | None]"]
OpenVideo = Callable[[Mapping[str, Any]], VideoFrames]
IMAGE_PART = {"type": "image"}
"""A picture's place in a message, where the picture itself is at hand."""
VIDEO_PART = {"type": "video"}
"""Likewise a video's."""


@dataclass
class Conversation:
    """What the messages say.

    Attributes:
        turns: the last one unanswered, unless the messages end with an answer.
        pictures: in the order of their ``<image>``; the frames of videos are among them.
        found: boxes of each, None for none.
        answer_start: what the last message of the assistant said, where it is to be continued.
        messages: what the turns were made of.
    """

    turns: list[Turn] = field(default_factory=list)
    pictures: list[Image.Image] = field(default_factory=list)
    found: list[PictureBoxes | None] = field(default_factory=list)
    answer_start: str = ""
    messages: list[Message] = field(default_factory=list)


def read_messages(
    messages: Sequence[Any],
    open_image: OpenImage,
    continue_last: bool = False,
    open_video: OpenVideo | None = None,
) -> Conversation:
    """Reads messages as training records are read; see `read_message` and `read_turns`.

    Args:
        messages: each with ``role`` and ``content``: text, or a list of parts of type text, image or video.
        open_image: makes picture and boxes of an image part.
        continue_last: the last message is the beginning of an answer.
        open_video: reads the frames (and their boxes) of a video part; None = such parts are refused.

    Raises:
        XTunerError: a message that cannot be read, or none of the user.
    """
    takes = open_video is not None
    read = [read_message(message, number, videos=takes) for number, message in enumerate(messages, start=1)]
    dialogue = read_turns(read)
    if not dialogue.turns:
        raise XTunerError("there is no user message to answer: send one.")
    found = Conversation(list(dialogue.turns), messages=read)
    last = found.turns[-1]
    if continue_last and last.output is not None:
        found.answer_start = last.output
        found.turns[-1] = replace(last, output=None)
    opened = [open_image(part) for part in dialogue.pictures]
    videos = [] if open_video is None else [open_video(part) for part in dialogue.videos]
    pictures, boxes = [picture for picture, _ in opened], [boxes for _, boxes in opened]
    found.turns, found.pictures, found.found = place_frames(found.turns, pictures, boxes, videos)
    return found


def question_about(text: str, shown: Sequence[int]) -> Turn:
    """Returns the turn that asks about pictures and videos.

    Args:
        text: the question; an ``<image>`` in it is text.
        shown: what stands before it, in order: 0 for a picture, for a video the number of its frames.

    Raises:
        XTunerError: the question is empty.
    """
    if not text.strip():
        raise XTunerError("the question is empty: type one.")
    content = [*(VIDEO_PART if frames else IMAGE_PART for frames in shown), {"type": "text", "text": text}]
    turns = read_turns([read_message({"role": "user", "content": content}, 1, videos=True)]).turns
    return with_frames(turns, [frames for frames in shown if frames])[0]


def shown_in(turn: Turn) -> list[int]:
    """Returns what `question_about` was told of a turn: nothing stands between the frames of a video."""
    shown: list[int] = []
    for part, run in groupby(turn.parts):
        count = len(list(run))
        shown += [0] * count if part is Place.PICTURE else [count] if part is Place.FRAME else []
    return shown
