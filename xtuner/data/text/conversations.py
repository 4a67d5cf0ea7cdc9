"""LLaVA records (``id``, ``image``, ``conversations``) to turns; every fault is named with its record."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from xtuner.constants import IMAGE_TOKEN
from xtuner.data.records.formats import as_llava
from xtuner.data.records.records import Record, read_records
from xtuner.data.text.templates import Turn
from xtuner.errors import SampleError, XTunerError

_ROLES = ("human", "gpt", "system")


class RecordError(XTunerError):
    """One faulty record; the text before the first colon is the kind of fault, by which reports count."""

    def __init__(self, kind: str, where: str, detail: str) -> None:
        super().__init__(f"{kind}: {where}: {detail}")


@dataclass(frozen=True)
class Conversation:
    """One parsed record.

    Attributes:
        id: the record's ``id`` as a string; ``"#<number>"`` where it has none.
        images: paths as the record gives them, in order; one per ``<image>`` in the turns.
        turns: answered turns; empty where nobody answers (such a record is dropped and counted, it is no
            fault).
        index: number of the record in its file, from 0.
    """

    id: str
    images: tuple[str, ...]
    turns: tuple[Turn, ...]
    index: int

    def without_last_images(self, count: int) -> Conversation:
        """Returns the conversation without its last `count` pictures."""
        return replace(self, images=self.images[: len(self.images) - count])


def parse_record(record: Any, index: int) -> Conversation:
    """Parses one record, of LLaVA's form or any of `xtuner.data.records.formats`.

    What the turns hold: answers before the first question and questions after the last answer are dropped;
    several human messages in a row are joined as they are; an answer right after an answer becomes a turn
    with an empty question. A human message with one ``<image>`` starts with it, then a newline and the
    stripped rest; with several they stay where they are, because the text refers to their places.

    Args:
        record: ``{"id"?, "image"?: path | list of paths | None, "conversations": [{"from", "value"}, ...]}``.
        index: number of the record in its file, from 0.

    Raises:
        RecordError: no list of messages, unknown role, text that is no string, no human message,
            ``<image>`` in an answer, or another number of ``<image>`` than of pictures.
    """
    if not isinstance(record, Mapping):
        raise RecordError(
            "not a record", f"record number {index + 1}", f"expected an object, found {type(record).__name__}"
        )
    name = _record_id(record, index)
    where = f"record '{name}' (number {index + 1})"
    try:
        record = as_llava(record)
    except SampleError as error:
        raise RecordError(error.kind, where, str(error)) from error
    messages = _messages(record, where)
    turns = tuple(_turns(messages))
    images = _images(record, where)
    if turns:
        _check_counts(turns, images, where)
    return Conversation(id=name, images=images, turns=turns, index=index)


def iter_conversations(
    path: str, problems: list[str], on_bytes: Callable[[int], None] | None = None
) -> Iterator[Conversation]:
    """Yields the good records of a LLaVA JSON or JSONL file; a sentence per faulty one is appended to
    `problems`.

    Malformed JSON ends the reading (what follows cannot be told apart) and is appended too. A missing file
    raises. `on_bytes` is told now and then how many bytes have been read.
    """
    for item in read_records(path, on_bytes):
        if not isinstance(item, Record):
            problems.append(item)
            continue
        try:
            yield parse_record(item.value, item.index)
        except RecordError as error:
            problems.append(str(error))


def _record_id(record: Mapping[str, Any], index: int) -> str:
    value = record.get("id")
    return f"#{index + 1}" if value is None else str(value)


def _messages(record: Mapping[str, Any], where: str) -> list[tuple[str, str]]:
    """Returns (role, text) pairs, checked."""
    messages = record.get("conversations")
    if not isinstance(messages, list) or not messages:
        found = "no 'conversations'" if "conversations" not in record else f"'conversations' = {str(messages)[:60]!r}"
        raise RecordError(
            "no messages", where, f"{found}, expected a list of {{'from', 'value'}} with at least one entry"
        )
    pairs: list[tuple[str, str]] = []
    for number, message in enumerate(messages, start=1):
        role = message.get("from") if isinstance(message, Mapping) else None
        if role not in _ROLES:
            detail = f"message {number} is from {role!r}, expected one of {', '.join(_ROLES)}"
            raise RecordError("unknown role", where, detail)
        value = message.get("value")
        if not isinstance(value, str):
            detail = f"message {number} has 'value' of type {type(value).__name__}, expected a string"
            raise RecordError("not a text", where, detail)
        if role != "human" and IMAGE_TOKEN in value:
            detail = f"message {number} ({role}) holds {IMAGE_TOKEN}; only human messages can contain pictures"
            raise RecordError("picture in an answer", where, detail)
        pairs.append((role, value))
    if all(role != "human" for role, _ in pairs):
        raise RecordError("no human turn", where, "there is no message from 'human', so there is nothing to answer")
    return pairs


def _turns(messages: Sequence[tuple[str, str]]) -> Iterator[Turn]:
    question: list[str] = []
    system: list[str] = []
    started = False
    for role, text in messages:
        if role == "system":
            system.append(text)
        elif role == "human":
            started = True
            question.append(_picture_first(text))
        elif started:
            yield Turn(input="".join(question), output=text, system="\n".join(system))
            question, system = [], []


def _picture_first(text: str) -> str:
    if text.count(IMAGE_TOKEN) != 1:
        return text
    return f"{IMAGE_TOKEN}\n{text.replace(IMAGE_TOKEN, '').strip()}".strip()


def _images(record: Mapping[str, Any], where: str) -> tuple[str, ...]:
    image = record.get("image")
    images = [] if image is None else [image] if isinstance(image, str) else image
    if not isinstance(images, list) or not all(isinstance(path, str) and path for path in images) or image == "":
        raise RecordError("bad picture path", where, f"'image' = {image!r}, expected a path, a list of paths, or null")
    return tuple(images)


def _check_counts(turns: Sequence[Turn], images: Sequence[str], where: str) -> None:
    places = sum(turn.input.count(IMAGE_TOKEN) for turn in turns)
    if places != len(images):
        raise RecordError(
            "wrong number of pictures",
            where,
            f"{places} {IMAGE_TOKEN} in the answered human messages, but 'image' lists {len(images)}; "
            f"write {IMAGE_TOKEN} once per picture",
        )
