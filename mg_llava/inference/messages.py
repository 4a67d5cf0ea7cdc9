"""Chat messages as servers and transformers have them (role, content) to turns and pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image

from mg_llava.boxes.selection import PictureBoxes
from xtuner.data.records.messages import read_message
from xtuner.data.text.templates import Turn
from xtuner.data.text.turns import read_turns
from xtuner.errors import XTunerError

OpenImage = Callable[[Mapping[str, Any]], "tuple[Image.Image, PictureBoxes | None]"]
IMAGE_PART = {"type": "image"}
"""A picture's place in a message, where the picture itself is at hand."""


@dataclass
class Conversation:
    """What the messages say.

    Attributes:
        turns: the last one unanswered, unless the messages end with an answer.
        pictures: in the order of their ``<image>``.
        found: boxes of each, None for none.
        answer_start: what the last message of the assistant said, where it is to be continued.
    """

    turns: list[Turn] = field(default_factory=list)
    pictures: list[Image.Image] = field(default_factory=list)
    found: list[PictureBoxes | None] = field(default_factory=list)
    answer_start: str = ""


def read_messages(messages: Sequence[Any], open_image: OpenImage, continue_last: bool = False) -> Conversation:
    """Reads messages as training records are read; see `read_message` and `read_turns`.

    Args:
        messages: each with ``role`` and ``content``: text, or a list of parts of type text or image.
        open_image: makes picture and boxes of an image part.
        continue_last: the last message is the beginning of an answer.

    Raises:
        XTunerError: a message that cannot be read, or none of the user.
    """
    read = [read_message(message, number) for number, message in enumerate(messages, start=1)]
    dialogue = read_turns(read)
    if not dialogue.turns:
        raise XTunerError("there is no user message to answer: send one.")
    found = Conversation(list(dialogue.turns))
    last = found.turns[-1]
    if continue_last and last.output is not None:
        found.answer_start = last.output
        found.turns[-1] = replace(last, output=None)
    opened = [open_image(part) for part in dialogue.pictures]
    found.pictures = [picture for picture, _ in opened]
    found.found = [boxes for _, boxes in opened]
    return found
