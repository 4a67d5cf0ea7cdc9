"""Chat messages as servers and transformers have them (role, content) to turns and pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from mg_llava.boxes.selection import PictureBoxes
from xtuner.constants import IMAGE_TOKEN
from xtuner.data.text.templates import Turn
from xtuner.errors import XTunerError

OpenImage = Callable[[Mapping[str, Any]], "tuple[Image.Image, PictureBoxes | None]"]
_IMAGE_KINDS = ("image", "image_url", "input_image")
_TEXT_KINDS = ("text", "input_text", "output_text")


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


def read_messages(messages: Sequence[Mapping[str, Any]], open_image: OpenImage, continue_last: bool) -> Conversation:
    """Reads messages of the roles system (or developer), user and assistant.

    Args:
        messages: each with ``role`` and ``content``: text, or a list of parts of type text or image.
        open_image: makes picture and boxes of an image part.
        continue_last: the last message is the beginning of an answer.

    Raises:
        XTunerError: another role or kind of part, pictures in an answer, or turns that do not alternate.
    """
    found = Conversation()
    system, question = "", None
    for number, message in enumerate(messages, start=1):
        role = message.get("role")
        words, images = _read_content(message.get("content"), number)
        if images and role != "user":
            raise XTunerError(f"message {number} ({role}) has pictures: only user messages may have them.")
        if role in ("system", "developer"):
            system = f"{system}\n{words}" if system else words
        elif role == "user":
            opened = [open_image(part) for part in images]
            found.pictures += [picture for picture, _ in opened]
            found.found += [boxes for _, boxes in opened]
            # pictures stand first in their turn, as in training
            words = f"{IMAGE_TOKEN}\n" * len(images) + words
            question = words if question is None else f"{question}\n{words}"
        elif role == "assistant":
            if question is None:
                raise XTunerError(
                    f"message {number} is an answer without a question before it: add the user's message."
                )
            if continue_last and number == len(messages):
                found.answer_start = words
                break
            found.turns.append(Turn(question, words, system))
            system, question = "", None
        else:
            raise XTunerError(f"message {number} has the role {role!r}: expected system, user or assistant.")
    if question is not None:
        found.turns.append(Turn(question, None, system))
    if not found.turns:
        raise XTunerError("there is no user message to answer: send one.")
    return found


def _read_content(content: Any, number: int) -> tuple[str, list[Mapping[str, Any]]]:
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, Sequence) or not all(isinstance(part, Mapping) for part in parts):
        raise XTunerError(f"message {number}: 'content' is {type(content).__name__}, expected text or a list of parts.")
    texts: list[str] = []
    images: list[Mapping[str, Any]] = []
    for part in parts:
        if part.get("type") in _TEXT_KINDS and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif part.get("type") in _IMAGE_KINDS:
            images.append(part)
        else:
            raise XTunerError(
                f"message {number} has a part of type {part.get('type')!r}: expected text (with 'text') or an image."
            )
    words = "\n".join(texts).strip()
    if IMAGE_TOKEN in words:
        raise XTunerError(
            f"message {number} holds {IMAGE_TOKEN}, which stands for a picture: send it as an image part."
        )
    return words, images
