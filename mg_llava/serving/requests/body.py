"""The bytes of a request to its JSON object; what is too large is refused before it is parsed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mg_llava.serving.requests.settings import Limits
from xtuner.data.records.messages import IMAGE_PARTS, VIDEO_PARTS, is_video, picture_address
from xtuner.errors import XTunerError
from xtuner.json_values import JSONFault, count_values, parse_json


def read_body(content: bytes, limits: Limits) -> dict[str, Any]:
    """Returns the JSON object of a request.

    Args:
        content: of the request.
        limits: of the server.

    Raises:
        XTunerError: not JSON in UTF-8 (see `parse_json`), not an object, or beyond a limit.
    """
    check_size(content, limits)
    try:
        body = parse_json(content)
    except JSONFault as error:
        raise XTunerError(f"the body is not JSON that can be read: {error}.") from error
    if not isinstance(body, dict):
        raise XTunerError(f"the body is not a JSON object but of type {type(body).__name__}: send an object.")
    parts = list(_media_parts(body.get("messages")))
    videos = sum(map(is_video, parts))
    if videos > limits.max_videos:
        raise XTunerError(f"the request has more than {limits.max_videos} videos, which is the limit: send fewer.")
    if len(parts) - videos > limits.max_pictures:
        raise XTunerError(f"the request has more than {limits.max_pictures} pictures, which is the limit: send fewer.")
    check_boxes((part.get("boxes") for part in parts), limits)
    _check_texts(body, parts, limits)
    return body


def check_size(content: bytes, limits: Limits) -> None:
    """Refuses JSON of too many values before it is parsed.

    Raises:
        XTunerError: more than `limits.max_values`.
    """
    values = count_values(content)
    if values > limits.max_values:
        raise XTunerError(
            f"the request holds up to {values:,} values, at most {limits.max_values:,} are taken: send less text, or "
            "fewer boxes."
        )


def check_boxes(lists: Iterable[Any], limits: Limits) -> None:
    """Counts the boxes of all pictures, in whatever form, before the first one is looked at.

    Raises:
        XTunerError: more than `limits.max_boxes`.
    """
    boxes = sum(map(_count_boxes, lists))
    if boxes > limits.max_boxes:
        raise XTunerError(
            f"the request has {boxes:,} boxes, at most {limits.max_boxes:,} are taken: send those with the highest "
            "scores."
        )


def _check_texts(body: Mapping[str, Any], parts: Sequence[Mapping[str, Any]], limits: Limits) -> None:
    """Refuses too much text; pictures and videos in data URLs do not count as text."""
    rest: list[Any] = [body]
    count = -sum(len(url) for part in parts if isinstance(url := picture_address(part), str))
    while rest:
        value = rest.pop()
        if isinstance(value, str):
            count += len(value)
        elif isinstance(value, Mapping):
            rest += [*value.keys(), *value.values()]
        elif isinstance(value, list):
            rest += value
    if count > limits.max_text:
        raise XTunerError(f"the request has {count:,} characters of text, at most {limits.max_text:,} are taken.")


def _media_parts(messages: Any) -> Iterator[Mapping[str, Any]]:
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, Mapping) else None
        for part in content if isinstance(content, list) else ():
            if isinstance(part, Mapping) and part.get("type") in (*IMAGE_PARTS, *VIDEO_PARTS):
                yield part


def _count_boxes(boxes: Any) -> int:
    lists = boxes.values() if isinstance(boxes, Mapping) else (boxes,)
    return max((len(values) for values in lists if isinstance(values, Sequence)), default=0)
