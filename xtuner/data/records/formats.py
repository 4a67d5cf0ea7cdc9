"""Formats of records besides LLaVA's, brought into it: told apart by their keys, record by record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from xtuner.constants import IMAGE_TOKEN
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
        "'conversations' of {'from': human | gpt | system, 'value'}, 'image' a path or a list of paths",
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
        "the same with 'images' instead of 'image'; user | assistant may replace human | gpt",
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
        "'messages' of {'role': user | assistant | system, 'content'}; content is text or a list of parts, pictures as "
        "paths",
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

_ROLES = {"user": "human", "assistant": "gpt"}


def as_llava(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns `record` in LLaVA's form; what is wrong in it stays wrong, for `parse_record` to name.

    Raises:
        SampleError: a message's parts cannot be read.
    """
    if "messages" in record and "conversations" not in record:
        return _from_openai(record)
    messages = record.get("conversations")
    if "images" not in record and not _has_other_roles(messages):
        return record
    changed = dict(record)
    if "images" in record and "image" not in record:
        changed["image"] = record["images"]
    if _has_other_roles(messages):
        changed["conversations"] = [
            {**message, "from": _ROLES.get(message["from"], message["from"])} if _is_other(message) else message
            for message in messages  # type: ignore[union-attr]  # a list, says _has_other_roles
        ]
    return changed


def _has_other_roles(messages: Any) -> bool:
    return isinstance(messages, list) and any(_is_other(message) for message in messages)


def _is_other(message: Any) -> bool:
    role = message.get("from") if isinstance(message, Mapping) else None
    return isinstance(role, str) and role in _ROLES


def _from_openai(record: Mapping[str, Any]) -> dict[str, Any]:
    messages = record["messages"]
    if not isinstance(messages, list):
        return {**record, "conversations": messages}
    pictures: list[Any] = []
    turns: list[Any] = []
    for message in messages:
        if not isinstance(message, Mapping):
            turns.append(message)
            continue
        content = message.get("content")
        if isinstance(content, list):
            content = "\n".join(_part_text(part, pictures) for part in content)
        role = message.get("role")
        turns.append({"from": _ROLES.get(role, role) if isinstance(role, str) else role, "value": content})
    image = record.get("image", record.get("images"))
    return {"id": record.get("id"), "image": pictures or image, "conversations": turns}


def _part_text(part: Any, pictures: list[Any]) -> str:
    """Text of one part of a message; a picture is noted in `pictures`."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return part["text"]
    if kind in ("image", "image_url", "input_image"):
        value = part.get("image_url", part.get("image", part.get("path")))
        path = value.get("url") if isinstance(value, Mapping) else value
        if isinstance(path, str) and not path.startswith(("http://", "https://", "data:")):
            pictures.append(path.removeprefix("file://"))
            return IMAGE_TOKEN
        found = f"{path[:40]}..." if isinstance(path, str) else repr(path)
        raise SampleError("bad picture path", f"a picture is {found!r}, expected a path relative to image_folder")
    raise SampleError("not a text", f"a part of a message is {str(part)[:60]!r}, expected a text or a picture")
