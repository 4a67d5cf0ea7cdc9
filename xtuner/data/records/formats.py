"""The formats of records, and the reading of a record in any of them: told apart by their keys, record by record."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from xtuner.constants import IMAGE_TOKEN, VIDEO_TOKEN
from xtuner.data.records.messages import Message, check_text, is_video, picture_address, read_loss, read_message
from xtuner.errors import SampleError


@dataclass(frozen=True)
class Format:
    """A format of records, for people.

    Attributes:
        name: as users know it.
        known_by: how a record of it is told.
        example: one record.
    """

    name: str
    known_by: str
    example: dict[str, Any]


FORMATS = (
    Format(
        "llava",
        "'conversations' of {'from': human | gpt | system, 'value'}, 'image' (or 'video') a path or a list of paths",
        {
            "id": "1",
            "image": "coco/1.jpg",
            "conversations": [
                {"from": "human", "value": "<image>\nWhat colour is the bus?"},
                {"from": "gpt", "value": "White and red."},
            ],
        },
    ),
    Format(
        "sharegpt",
        "the same with 'images' instead of 'image'; user | assistant may replace human | gpt; 'system' beside it",
        {
            "id": "1",
            "images": ["coco/1.jpg"],
            "conversations": [
                {"from": "user", "value": "<image>\nWhat colour is the bus?"},
                {"from": "assistant", "value": "White and red."},
            ],
        },
    ),
    Format(
        "openai",
        "'messages' of {'role': user | assistant | system, 'content'}; content is text or a list of parts, pictures "
        "and videos ('video_url') as paths",
        {
            "id": "1",
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": "coco/1.jpg"}},
                        {"type": "text", "text": "What colour is the bus?"},
                    ],
                },
                {"role": "assistant", "content": "White and red."},
            ],
        },
    ),
)
"""All that are read; a file may mix them."""

_SAID = frozenset({"conversations", "messages", "system", "value", "content", "role", "from", "loss", "weight"})
_IMAGES, _VIDEOS = ("image", "images"), ("video", "videos")
_KNOWN = frozenset({"id", *_IMAGES, *_VIDEOS, "conversations", "messages", "system", "loss", "weight"})
_BOXES = ("boxes", "labels", "scores", "width", "height")
_NOT_SUPPORTED = ("audio", "audios", "tools", "functions")
_PICTURE_NAME = re.compile(r"image|img|picture|photo|media|visual|screenshot|figure|frame|(^|_)pics?($|_)", re.I).search
_PICTURE_PATH = re.compile(
    r"\.(jpe?g|jfif|png|webp|bmp|gif|tiff?|heic|heif|avif|jp2|ppm)([?#]\S*)?$|^data:image/", re.I
).search
_LIKE_IMAGE = 0.8
"""Of two names' letters, from which one counts as the other mistyped: ``iamge``."""


@dataclass(frozen=True)
class RecordContent:
    """What a record says, in whichever format.

    Attributes:
        messages: at least one.
        images: the record's own pictures, in order; empty where the messages name theirs.
        places_in_text: each ``<image>`` in a text of the user is the place of a picture, not text.
        notes: of what is left out or read in another way than one might think; by these it is counted.
        suspect: a field that looks as if it named the pictures, where the record has no 'image'.
        videos: its videos, in order.
        videos_in_text: each ``<video>`` in a text of the user is the place of a video.
    """

    messages: tuple[Message, ...]
    images: tuple[str, ...]
    places_in_text: bool
    notes: tuple[str, ...]
    suspect: str | None = None
    videos: tuple[str, ...] = ()
    videos_in_text: bool = False


def read_record(record: Mapping[str, Any], videos: bool = False) -> RecordContent:
    """Reads a record of any of `FORMATS`.

    Args:
        record: any.
        videos: take videos; else a record with one is refused.

    Raises:
        SampleError: what cannot be read, by name; its `kind` is what faults are counted by.
    """
    for name in (*_NOT_SUPPORTED, *(() if videos else _VIDEOS)):
        if record.get(name):
            raise SampleError(
                "not supported", f"{name!r} = {str(record[name])[:60]!r} cannot be trained on: take it out"
            )
    default = read_loss(record, "the record")
    messages = [
        read_message(message, number, default is not False, videos)
        for number, message in enumerate(_messages(record), start=1)
    ]
    images, clips = _named(record, _IMAGES), _named(record, _VIDEOS)
    if system := record.get("system"):
        if not isinstance(system, str):
            raise SampleError("not a text", f"'system' is {type(system).__name__}, expected a text")
        check_text(system, "'system'")
        messages.insert(0, Message("system", (system,)))
    if all(message.role != "user" for message in messages):
        raise SampleError("no human turn", "there is no message from 'human', so there is nothing to answer")
    ignored = {name for message in messages for name in message.ignored}
    has_parts = any(message.pictures or message.videos for message in messages)
    if has_parts:
        images = _with_paths([part for message in messages for part in message.pictures], images, "image")
        clips = _with_paths([part for message in messages for part in message.videos], clips, "video")
    named = any(name in record for name in _IMAGES)
    messages, as_video = _image_as_video(messages) if clips and not (has_parts or images) else (messages, [])
    suspect = None
    literal = any(IMAGE_TOKEN in part for message in messages for part in message.texts)
    if literal and not (named or has_parts or as_video):
        suspect = _picture_like(record, _messages(record))
    places_in_text = not has_parts and (named or suspect is not None)
    known = _KNOWN if own_boxes(record) is None else _KNOWN.union(_BOXES)
    unread = sorted(name for name, value in record.items() if name not in known and value not in (None, "", [], {}))
    notes = [f"a field {name!r}, which is not read," for name in (*unread, *sorted(ignored))]
    notes += [*as_video, *_literal_notes(messages, has_parts, places_in_text)]
    content = RecordContent(tuple(messages), tuple(images), places_in_text, tuple(dict.fromkeys(notes)), suspect)
    videos_in_text = not has_parts and any(name in record for name in _VIDEOS)
    return replace(content, videos=tuple(clips), videos_in_text=videos_in_text)


def names_video(record: Any) -> bool:
    """Says whether a record names a video: a quick look, for records that may be faulty."""
    if not isinstance(record, Mapping):
        return False
    talks = (record.get(name) for name in ("conversations", "messages"))
    said = [message for talk in talks if isinstance(talk, list) for message in talk if isinstance(message, Mapping)]
    contents = [message.get(name) for message in said for name in ("value", "content")]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return any(map(record.get, _VIDEOS)) or any(isinstance(part, Mapping) and is_video(part) for part in parts)


def own_boxes(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the fields that give the boxes of a record's own pictures, as they are; None where it gives none."""
    if record.get("boxes") is None:
        return None
    return {name: record[name] for name in _BOXES if record.get(name) is not None}


def _image_as_video(messages: list[Message]) -> tuple[list[Message], list[str]]:
    """The messages of a record with videos alone: where it has no ``<video>``, ``<image>`` is the place of one."""
    asked = [text for message in messages if message.role == "user" for text in message.texts]
    if any(VIDEO_TOKEN in text for text in asked) or not any(IMAGE_TOKEN in text for text in asked):
        return messages, []
    changed = [
        replace(message, parts=tuple(str(part).replace(IMAGE_TOKEN, VIDEO_TOKEN) for part in message.parts))
        if message.role == "user"
        else message
        for message in messages
    ]
    return changed, [f"{IMAGE_TOKEN} read as the place of a video"]


def _literal_notes(messages: Sequence[Message], has_parts: bool, places_in_text: bool) -> list[str]:
    """Where ``<image>`` is written and is no place of a picture."""
    roles = {message.role for message in messages if any(IMAGE_TOKEN in part for part in message.texts)}
    if has_parts:
        return [f"{IMAGE_TOKEN} beside pictures that are parts, read as text"] if roles else []
    if not places_in_text:
        return [f"{IMAGE_TOKEN} without a picture, read as text"] if roles else []
    where = {"assistant": "an answer", "system": "a system prompt"}
    return [f"{IMAGE_TOKEN} in {said}, read as text" for role, said in where.items() if role in roles]


def _messages(record: Mapping[str, Any]) -> list[Any]:
    given = [name for name in ("conversations", "messages") if record.get(name) is not None]
    if len(given) > 1:
        raise SampleError("no messages", "the record has both 'conversations' and 'messages': keep one of them")
    messages = record[given[0]] if given else None
    if not isinstance(messages, list) or not messages:
        found = f"{given[0]!r} = {str(messages)[:60]!r}" if given else "no 'conversations' and no 'messages'"
        raise SampleError(
            "no messages",
            f"{found}, expected a list of {{'from', 'value'}} or {{'role', 'content'}} with at least one entry",
        )
    return messages


def _named(record: Mapping[str, Any], names: tuple[str, str]) -> list[str]:
    """The pictures or videos that a record lists."""
    one, several = names
    lists = {name: _paths(name, record[name]) for name in names if record.get(name) is not None}
    if len(lists) > 1 and lists[one] != lists[several]:
        kind = "bad picture path" if names == _IMAGES else "bad video path"
        raise SampleError(kind, f"the record has {one!r} and {several!r} that differ: keep one of them")
    return next(iter(lists.values()), [])


def _paths(name: str, value: Any) -> list[str]:
    paths = [value] if isinstance(value, str) else value
    what = "video" if name in _VIDEOS else "picture"
    if not isinstance(paths, list) or not all(isinstance(path, str) and path for path in paths):
        found = f"{name!r} = {value!r}"
        raise SampleError(f"bad {what} path", f"{found}, expected a path, a list of paths, or null")
    for path in paths:
        check_text(path, f"the {what}'s path")
    return paths


def _with_paths(parts: Sequence[Mapping[str, Any]], named: Sequence[str], key: str) -> list[str]:
    """What image or video parts name; parts that name nothing take the record's own, one after the other."""
    rest = list(named)
    paths = []
    what = "video" if key == "video" else "picture"
    for part in parts:
        address = picture_address(part)
        if address is None and rest:
            paths.append(rest.pop(0))
        elif isinstance(address, str) and address and not address.startswith(_NO_PATHS) and "base64" not in part:
            check_text(address, f"the {what}'s path")
            paths.append(address.removeprefix("file://"))
        else:
            found = f"{address[:40]}..." if isinstance(address, str) else repr(address)
            raise SampleError(f"bad {what} path", f"a {what} is {found!r}, expected a path relative to image_folder")
    if rest and rest != paths:
        raise SampleError(
            f"wrong number of {what}s",
            f"{len(rest)} of the {len(named)} {what}s of '{key}' have no place: the messages name theirs themselves",
        )
    return paths


_NO_PATHS = ("http://", "https://", "data:")


def _picture_like(record: Mapping[str, Any], messages: Sequence[Any]) -> str | None:
    """A field that names or may name a picture, where it is not written as it should be."""
    for node in (record, *messages):
        for name, value in node.items():
            if name not in _SAID and (_names_picture(str(name)) or _holds_path(value)):
                return str(name)
    return None


def _names_picture(name: str) -> bool:
    return bool(_PICTURE_NAME(name) or get_close_matches(name.lower(), ("image", "images"), cutoff=_LIKE_IMAGE))


def _holds_path(value: Any) -> bool:
    """A text that is a picture's path, wherever it stands in what a field holds."""
    if isinstance(value, str):
        return bool(_PICTURE_PATH(value.strip()))
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return any(map(_holds_path, inner))
