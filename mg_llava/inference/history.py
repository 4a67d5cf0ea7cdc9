"""Saved conversations: messages of a chat-completion request with their pictures, so that one file holds all."""

from __future__ import annotations

import base64
import json
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mg_llava.boxes.selection import PictureBoxes
from mg_llava.inference.prompts import as_picture_boxes, check_finite
from mg_llava.pictures.open import open_base64
from xtuner.data.records.messages import Message, picture_address, read_message
from xtuner.data.text.templates import Turn
from xtuner.data.text.turns import PARTS_JOINT, read_turns
from xtuner.errors import XTunerError, counted
from xtuner.json_values import JSONFault, count_values, parse_json

MAX_BYTES = 64_000_000
"""Of a file that is read or written."""
MAX_VALUES = 100_000
"""Of its JSON, counted before it is parsed."""
MAX_TEXT = 200_000
"""Characters of its texts."""
MAX_PICTURES = 8
MAX_BOXES = 1000
"""Of one picture."""
_KINDS = {b"\x89PNG": "png", b"\xff\xd8": "jpeg", b"RIFF": "webp", b"GIF8": "gif", b"BM": "bmp"}
_OTHER_KIND = "tiff"
_HEAD = "data:image/"
_ADVICE = "load a file that a chat was saved to."


@dataclass(frozen=True)
class SavedPicture:
    """A picture of a saved conversation.

    Attributes:
        content: bytes of its file.
        picture: itself, RGB.
        found: the boxes that become object tokens, in its pixels; None = none asked for.
    """

    content: bytes
    picture: Image.Image
    found: PictureBoxes | None


@dataclass(frozen=True)
class History:
    """A saved conversation.

    Attributes:
        turns: all answered.
        pictures: in the order of their places.
    """

    turns: tuple[Turn, ...]
    pictures: tuple[SavedPicture, ...]


def history_text(
    turns: Sequence[Turn], pictures: Sequence[tuple[bytes, PictureBoxes | None]], max_bytes: int = MAX_BYTES
) -> str:
    """Returns a conversation as JSON text that `read_history` and the endpoint ``/v1/chat/completions`` take.

    Args:
        turns: answered.
        pictures: of the turns, in order: the bytes of the file and its boxes; further ones are left out.
        max_bytes: of the text.

    Raises:
        XTunerError: there is no turn, or the text would be too large to be loaded again.
    """
    if not turns:
        raise XTunerError("there is no answer to save yet: ask a question first.")
    parts = iter([_picture_part(*picture) for picture in pictures])
    messages = []
    for turn in turns:
        messages.append({"role": "user", "content": _content(turn, parts)})
        messages.append({"role": "assistant", "content": turn.output or ""})
    text = json.dumps({"messages": messages}, ensure_ascii=False, indent=1)
    if (size := len(text.encode("utf-8", "surrogatepass"))) > max_bytes:
        raise XTunerError(
            f"the chat with its pictures takes {size / 1e6:.1f} MB, of which at most {max_bytes / 1e6:.0f} MB could be "
            "loaded again: use smaller pictures."
        )
    return text


def read_history(
    path: str | Path,
    apply_exif_orientation: bool = False,
    max_bytes: int = MAX_BYTES,
    max_pixels: int | None = None,
) -> History:
    """Reads a saved conversation; the file may be anybody's.

    Args:
        path: of the file.
        apply_exif_orientation: see `mg_llava.pictures.open.open_picture`.
        max_bytes: of the file.
        max_pixels: of a picture.

    Raises:
        XTunerError: it is no saved conversation, or larger than what is taken; one sentence says what was found.
    """
    messages = _messages(_read(Path(path), max_bytes))
    read = [_read_message(message, number) for number, message in enumerate(messages, start=1)]
    if (count := sum(len(text) for message in read for text in message.texts)) > MAX_TEXT:
        raise XTunerError(f"the saved chat has {count:,} characters, at most {MAX_TEXT:,} are taken; {_ADVICE}")
    dialogue = read_turns(read)
    if len(dialogue.pictures) > MAX_PICTURES:
        raise XTunerError(f"the saved chat has {len(dialogue.pictures)} pictures, at most {MAX_PICTURES} are taken.")
    opened = [_open(part, apply_exif_orientation, max_pixels) for part in dialogue.pictures]
    return History(dialogue.turns, tuple(opened))


def _content(turn: Turn, pictures: Any) -> Any:
    """A question as parts of a message, joints taken out that reading puts back."""
    parts: list[dict[str, Any]] = []
    last = len(turn.parts) - 1
    for number, part in enumerate(turn.parts):
        if not isinstance(part, str):
            parts.append(next(pictures))
            continue
        if 0 < number < last and part == PARTS_JOINT:
            # nothing but the joint of two pictures
            continue
        text = part.removeprefix(PARTS_JOINT) if number else part
        parts.append({"type": "text", "text": text.removesuffix(PARTS_JOINT) if number < last else text})
    return parts


def _picture_part(content: bytes, found: PictureBoxes | None) -> dict[str, Any]:
    kind = next((kind for start, kind in _KINDS.items() if content.startswith(start)), _OTHER_KIND)
    url = f"{_HEAD}{kind};base64,{base64.b64encode(content).decode()}"
    part: dict[str, Any] = {"type": "image_url", "image_url": {"url": url}}
    if found is not None:
        part["boxes"] = boxes_as_json(found)
    return part


def boxes_as_json(found: PictureBoxes) -> Any:
    """Returns boxes as `as_picture_boxes` reads them: a plain list where labels and scores say nothing."""
    # the shortest digits that give the same float32
    boxes = [[float(str(value)) for value in box] for box in np.asarray(found.boxes, np.float32)]
    if found.labels == tuple(map(str, range(len(boxes)))) and (found.scores == 1).all():
        return boxes
    return {"boxes": boxes, "labels": list(found.labels), "scores": np.asarray(found.scores, np.float64).tolist()}


def _read(path: Path, max_bytes: int) -> Any:
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):
            raise XTunerError(f"'{path.name}' is no regular file; {_ADVICE}")
        if facts.st_size > max_bytes:
            raise XTunerError(
                f"'{path.name}' has {facts.st_size / 1e6:.1f} MB, at most {max_bytes / 1e6:.0f} MB are taken; {_ADVICE}"
            )
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        raise XTunerError(f"'{path.name}' cannot be read: {error}; {_ADVICE}") from error
    if (values := count_values(content)) > MAX_VALUES:
        raise XTunerError(f"'{path.name}' holds {values:,} values, at most {MAX_VALUES:,} are taken; {_ADVICE}")
    try:
        return parse_json(content)
    except JSONFault as error:
        raise XTunerError(f"'{path.name}' is not JSON: {error}; {_ADVICE}") from error


def _messages(value: Any) -> list[Any]:
    messages = value.get("messages") if isinstance(value, Mapping) else None
    if not isinstance(messages, list) or not messages:
        raise XTunerError(f"the file is no saved chat: expected an object with a list 'messages'; {_ADVICE}")
    if len(messages) % 2:
        raise XTunerError(f"the saved chat ends with a question: expected an answer after each of them; {_ADVICE}")
    return messages


def _read_message(value: Any, number: int) -> Message:
    """One message; questions and answers come in turn, so that a file can bring no words of anybody else."""
    message = read_message(value, number)
    expected = "user" if number % 2 else "assistant"
    said = value.get("role", value.get("from"))
    if said != expected:
        raise XTunerError(
            f"message {number} of the saved chat is of role {str(said)[:40]!r}, expected {expected!r}: questions of "
            f"the user and answers of the assistant in turn; {_ADVICE}"
        )
    if expected == "user" and not message.pictures and not "".join(message.texts).strip():
        raise XTunerError(f"message {number} of the saved chat is an empty question; {_ADVICE}")
    return message


def _open(part: Mapping[str, Any], apply_exif_orientation: bool, max_pixels: int | None) -> SavedPicture:
    url = picture_address(part)
    head, _, text = url.partition(",") if isinstance(url, str) else ("", "", "")
    if not (head.startswith(_HEAD) and head.endswith(";base64")):
        raise XTunerError(f"a picture of the saved chat is not in the file: expected {_HEAD}...;base64,..; {_ADVICE}")
    picture = open_base64(text, apply_exif_orientation, max_pixels, strict=True)
    found = as_picture_boxes(part.get("boxes"))
    if found is not None:
        check_finite(found)
        if len(found.boxes) > MAX_BOXES:
            raise XTunerError(
                f"a picture of the saved chat has {counted(len(found.boxes), 'boxes')}: at most {MAX_BOXES:,}."
            )
    return SavedPicture(base64.b64decode("".join(text.split())), picture, found)
