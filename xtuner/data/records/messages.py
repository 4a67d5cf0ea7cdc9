"""One message of a conversation, in whichever words it is written: the one reader of training data, chat and servers.

``{"from": "human", "value": ...}`` and ``{"role": "user", "content": ...}`` say the same, a text the same as a list
with one part. What is not understood is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from xtuner.errors import SampleError

Role: TypeAlias = Literal["system", "user", "assistant"]

ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "developer": "system",
}
TEXT_PARTS = ("text", "input_text", "output_text")
IMAGE_PARTS = ("image", "image_url", "input_image")
VIDEO_PARTS = ("video", "video_url", "input_video")
_IMAGE_FIELDS = ("image_url", "image", "url", "path", "base64")
_VIDEO_FIELDS = ("video_url", "video", "url", "path", "base64")
_KNOWN = frozenset({"from", "role", "value", "content", "loss", "weight"})
_TEXT_KNOWN = frozenset({"type", "text"})
_PICTURE_KNOWN = frozenset({"type", *_IMAGE_FIELDS})
_VIDEO_KNOWN = frozenset({"type", *_VIDEO_FIELDS})
_RANGE = re.compile(r"(?<=.)#t=[^#]*$", re.S)
_SAYS_MORE = frozenset(
    {
        "audio", "audios", "function_call", "functions", "image", "images", "reasoning", "reasoning_content", "refusal",
        "tool_call_id", "tool_calls", "tools", "video", "videos",
    }
)  # fmt: skip
"""Fields of a message that hold a part of what is said; none of them can be read."""


@dataclass(frozen=True)
class Message:
    """What one side says.

    Attributes:
        role: who.
        parts: texts, pictures and videos in order; a picture or video is the part that names it, as it was written.
        supervised: an answer's tokens carry loss.
        ignored: its fields that say nothing and are not read.
    """

    role: Role
    parts: tuple[str | Mapping[str, Any], ...]
    supervised: bool = True
    ignored: tuple[str, ...] = ()

    @property
    def texts(self) -> list[str]:
        """The parts that are text."""
        return [part for part in self.parts if isinstance(part, str)]

    @property
    def pictures(self) -> list[Mapping[str, Any]]:
        """The parts that are pictures."""
        return [part for part in self.parts if not isinstance(part, str) and not is_video(part)]

    @property
    def videos(self) -> list[Mapping[str, Any]]:
        """The parts that are videos."""
        return [part for part in self.parts if not isinstance(part, str) and is_video(part)]


def is_video(part: Mapping[str, Any]) -> bool:
    """Says whether a part that is no text names a video."""
    return part.get("type") in VIDEO_PARTS


def read_message(message: Any, number: int, supervised: bool = True, videos: bool = False) -> Message:
    """Reads one message.

    Args:
        message: ``{"role" or "from", "content" or "value", "loss"?, "weight"?}``.
        number: of the message, from 1, for errors.
        supervised: whether an answer carries loss where the message itself does not say.
        videos: take parts that are videos; else they are refused.

    Raises:
        SampleError: an unknown role, content that is neither text nor a list of parts, a picture that is not the
            user's, a part or field that cannot be read, or a ``loss`` that is neither true nor false.
    """
    role = _read_role(message, number)
    parts = tuple(_read_parts(message, number, videos))
    if role != "user" and not all(isinstance(part, str) for part in parts):
        raise SampleError(
            "picture in an answer",
            f"message {number} ({role}) has pictures or videos: only user messages may have them",
        )
    for name in sorted(_SAYS_MORE.intersection(message)):
        if message[name]:
            raise SampleError(
                "not supported", f"message {number} has {name!r}, which is not supported: take it out, or the message."
            )
    return Message(role, parts, _read_loss(message, number, role, supervised), tuple(sorted(_unread(message))))


def read_loss(node: Mapping[str, Any], where: str) -> bool | None:
    """Returns what ``loss`` (true or false) or ``weight`` (1 or 0) says; None where neither stands.

    Raises:
        SampleError: another value, or the two disagree.
    """
    said = {name: node[name] for name in ("loss", "weight") if node.get(name) is not None}
    for name, value in said.items():
        if not isinstance(value, (bool, int, float)) or value not in (0, 1):
            kind = type(value).__name__
            raise SampleError(
                "bad loss", f"{where} has {name!r} = {str(value)[:40]!r} ({kind}), expected true or false, 1 or 0"
            )
    values = {bool(value) for value in said.values()}
    if len(values) > 1:
        raise SampleError("bad loss", f"{where} has 'loss' and 'weight' that disagree: keep one of them")
    return values.pop() if values else None


def _read_role(message: Any, number: int) -> Role:
    if not isinstance(message, Mapping):
        found = f"message {number} is of type {type(message).__name__}"
        raise SampleError("unknown role", f"{found}, expected an object of role and content (or from and value)")
    said = {name: message[name] for name in ("from", "role") if message.get(name) is not None}
    roles = {ROLES.get(role) if isinstance(role, str) else None for role in said.values()}
    if len(roles) == 1 and (role := roles.pop()) is not None:
        return role
    verbs = {"from": "is from", "role": "has the role"}
    found = " and ".join(f"{verbs[name]} {role!r}" for name, role in said.items()) or "has no role"
    raise SampleError("unknown role", f"message {number} {found}, expected one of {', '.join(ROLES)}")


def _read_parts(message: Mapping[str, Any], number: int, videos: bool) -> list[str | Mapping[str, Any]]:
    said = [name for name in ("value", "content") if message.get(name) is not None]
    if len(said) > 1:
        raise SampleError("not a text", f"message {number} has both 'value' and 'content': keep one of them")
    name = said[0] if said else "content" if "content" in message or "role" in message else "value"
    content = message.get(name)
    if isinstance(content, str):
        check_text(content, f"message {number}")
        return [content]
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        found = f"message {number}: {name!r} is {type(content).__name__}"
        raise SampleError("not a text", f"{found}, expected a text or a list of parts")
    return [_read_part(part, number, videos) for part in content]


def _read_part(part: Any, number: int, videos: bool) -> str | Mapping[str, Any]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if isinstance(kind, str) and kind in TEXT_PARTS and isinstance(part.get("text"), str):
        check_text(part["text"], f"message {number}")
        return str(part["text"])
    if isinstance(kind, str) and kind in (*IMAGE_PARTS, *(VIDEO_PARTS if videos else ())):
        return dict(part)
    found = f"a part of type {kind!r}" if isinstance(part, Mapping) else f"the part {str(part)[:60]!r}"
    raise SampleError(
        "not a text", f"message {number} has {found}, expected {{'type': 'text', 'text'}} or {{'type': 'image_url'}}"
    )


def _read_loss(message: Mapping[str, Any], number: int, role: Role, default: bool) -> bool:
    said = read_loss(message, f"message {number}")
    if said and role != "assistant":
        raise SampleError("bad loss", f"message {number} ({role}) asks for loss: only answers can carry it")
    return default if said is None else said


def _unread(message: Mapping[str, Any]) -> set[str]:
    found = _more(message, _KNOWN)
    for name in ("value", "content"):
        for part in message[name] if isinstance(message.get(name), list) else ():
            known = _VIDEO_KNOWN if is_video(part) else _PICTURE_KNOWN if part["type"] in IMAGE_PARTS else _TEXT_KNOWN
            found |= _more(part, known)
            for name in ("image_url", "video_url") if known is not _TEXT_KNOWN else ():
                address = part.get(name)
                found |= _more(address, {"url"}) if isinstance(address, Mapping) else set()
    return found


def _more(node: Mapping[str, Any], known: Collection[str]) -> set[str]:
    return {str(name) for name, value in node.items() if name not in known and value not in (None, "", [], {})}


def picture_address(part: Mapping[str, Any]) -> Any:
    """Returns the path, address or content that an image or video part names; None where it names none."""
    for name in _VIDEO_FIELDS if is_video(part) else _IMAGE_FIELDS:
        value = part.get(name)
        if value is not None:
            return value.get("url") if isinstance(value, Mapping) else value
    return None


def without_range(video: str) -> str:
    """Returns the path of a video without the part that is meant (``clip.mp4#t=3,12``)."""
    return _RANGE.sub("", video)


def check_text(text: str, where: str) -> None:
    """Refuses half of a character, which no tokenizer and no file takes.

    Raises:
        SampleError: a lone surrogate.
    """
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise SampleError(
            "half a character",
            f"{where} holds U+{code:04X} at character {error.start + 1}, half of a surrogate pair (a cut emoji): "
            "write the whole character, or U+FFFD",
        ) from None
