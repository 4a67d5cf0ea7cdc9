"""The bytes of a request to its JSON object; what is too large is refused before it is parsed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mg_llava.serving.requests.settings import Limits
from xtuner.data.records.messages import IMAGE_PARTS, check_text, picture_address
from xtuner.errors import XTunerError


def read_body(content: bytes, limits: Limits) -> dict[str, Any]:
    """Returns the JSON object of a request.

    Args:
        content: of the request.
        limits: of the server.

    Raises:
        XTunerError: not JSON in UTF-8, not an object, a name twice in one object, half a character, or beyond a limit.
    """
    # each value but the first of a list or object stands after a comma, the first after its bracket
    values = sum(content.count(sign) for sign in (b",", b"[", b"{"))
    if values > limits.max_values:
        raise XTunerError(
            f"the request holds up to {values:,} values, at most {limits.max_values:,} are taken: send less text, or "
            "fewer boxes."
        )
    try:
        body = json.loads(content.decode(), object_pairs_hook=_without_doubles, parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise XTunerError(f"the body is not UTF-8 (byte {error.start}): send JSON in UTF-8.") from error
    except RecursionError as error:
        raise XTunerError(
            f"the body is not JSON that is read here: nested more than {limits.max_depth} deep."
        ) from error
    except XTunerError:
        raise
    # also a number of more digits than Python reads
    except ValueError as error:
        raise XTunerError(f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise XTunerError(f"the body is not a JSON object but of type {type(body).__name__}: send an object.")
    parts = list(_image_parts(body.get("messages")))
    _check_pictures(parts, limits)
    _check_texts(body, parts, limits)
    return body


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise XTunerError(f"the body is not JSON that is read here: an object has {twice[:40]!r} twice.")
    return found


def _refuse_constant(name: str) -> Any:
    raise XTunerError(f"the body is not JSON: {name} is no number of JSON.")


def _check_texts(body: Mapping[str, Any], parts: Sequence[Mapping[str, Any]], limits: Limits) -> None:
    """Refuses half a character, too much text and too deep nesting; pictures in data URLs do not count as text."""
    rest: list[tuple[Any, int]] = [(body, 1)]
    count = -sum(len(url) for part in parts if isinstance(url := picture_address(part), str))
    while rest:
        value, depth = rest.pop()
        if depth > limits.max_depth + 1:
            raise XTunerError(f"the body is nested more than {limits.max_depth} deep: send it flatter.")
        if isinstance(value, str):
            check_text(value, "the request")
            count += len(value)
        elif isinstance(value, Mapping):
            rest += [(inner, depth + 1) for pair in value.items() for inner in pair]
        elif isinstance(value, list):
            rest += [(inner, depth + 1) for inner in value]
    if count > limits.max_text:
        raise XTunerError(f"the request has {count:,} characters of text, at most {limits.max_text:,} are taken.")


def _check_pictures(parts: Sequence[Mapping[str, Any]], limits: Limits) -> None:
    """Counts pictures and boxes before the first picture is decoded and the first box is looked at."""
    if len(parts) > limits.max_pictures:
        raise XTunerError(f"the request has more than {limits.max_pictures} pictures, which is the limit: send fewer.")
    boxes = sum(_count_boxes(part.get("boxes")) for part in parts)
    if boxes > limits.max_boxes:
        raise XTunerError(
            f"the request has {boxes:,} boxes, at most {limits.max_boxes:,} are taken: send those with the highest "
            "scores."
        )


def _image_parts(messages: Any) -> Iterator[Mapping[str, Any]]:
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, Mapping) else None
        for part in content if isinstance(content, list) else ():
            if isinstance(part, Mapping) and part.get("type") in IMAGE_PARTS:
                yield part


def _count_boxes(boxes: Any) -> int:
    lists = boxes.values() if isinstance(boxes, Mapping) else (boxes,)
    return max((len(values) for values in lists if isinstance(values, Sequence)), default=0)
