"""Records to Arrow record batches: parsed, tokenised, and with the columns that a model family adds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa

from xtuner.data.records.json_stream import Record
from xtuner.data.text.conversations import Conversation, RecordError, parse_record
from xtuner.data.text.specials import Policy, check_policy, refusal
from xtuner.data.text.templates import PromptTemplate
from xtuner.data.text.tokenizing import Encoded, encode_conversations

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEXT_SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "images": pa.list_(pa.string()),
        "input_ids": pa.list_(pa.int32()),
        "labels": pa.list_(pa.int32()),
    }
)
"""The columns that every prepared data set has."""

INDEX = np.dtype([("length", np.int32), ("tokens", np.int32), ("images", np.int32)])
"""What is known of every sample at the start: text ids, all tokens, pictures."""


@dataclass
class Added:
    """What a model family says of the samples of a batch.

    Attributes:
        columns: by name, one value per sample.
        tokens: all tokens of each sample; None = it is dropped, and counted.
        counts: what is to be told of them.
        problems: a sentence per faulty sample; where there is one, the batch is not written.
    """

    columns: dict[str, Sequence[Any]]
    tokens: Sequence[int | None]
    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Dropped:
    """A record that is left out, and counted.

    Attributes:
        reason: by which it is counted.
    """

    reason: str


class VideoExpander(Protocol):
    """Puts frames in the places of videos. Pickled into the worker processes."""

    def __call__(self, conversations: Sequence[Conversation]) -> list[Conversation | RecordError | Dropped]:
        """Returns each conversation with frames among its pictures, what is wrong with its record, or why it is left
        out; those without videos as they are.
        """
        ...


class SampleColumns(Protocol):
    """Columns beside the text. Pickled into the worker processes."""

    fields: dict[str, pa.DataType]

    def settings(self) -> dict[str, Any]:
        """Describes everything that the columns depend on, as JSON can hold it."""
        ...

    def add(self, conversations: Sequence[Conversation], encoded: Sequence[Encoded]) -> Added:
        """Makes the columns."""
        ...


@dataclass
class EncodedBatch:
    """A record batch and what is to be told of it.

    Attributes:
        batch: of the samples.
        index: `INDEX` of each.
        counts: kept, dropped, cut off; and of every kind of note.
        problems: a sentence per faulty record.
        notes: the first records of every kind of note, by name.
    """

    batch: pa.RecordBatch
    index: np.ndarray
    counts: Counter[str]
    problems: list[str]
    notes: dict[str, list[str]] = field(default_factory=dict)


_TOO_LONG = "dropped: no supervised token within max_length"
NAMED = 10
"""Records of a kind that are named, where all are counted."""


def record_notes(conversation: Conversation, encoded: Encoded, policy: Policy) -> list[str]:
    """Returns what of a record is to be told, though it is no fault: kinds, by which records are counted."""
    notes = [f"records with {note}" for note in conversation.notes]
    if encoded.special_words:
        notes.append(f"records with special tokens in their text, {_DONE[policy]}")
    return notes


_DONE: dict[Policy, str] = {"split": "read as text", "keep": "kept as tokens", "refuse": "refused"}


def special_token_problem(conversation: Conversation, encoded: Encoded, policy: Policy) -> str | None:
    """Returns the fault of a record whose text holds special tokens, where these are refused."""
    if policy != "refuse" or not encoded.special_words:
        return None
    error = refusal(encoded.special_words)
    return str(RecordError(error.kind, conversation.where, str(error)))


class RecordEncoder:
    """Makes record batches of records; pickled into the worker processes.

    Args:
        tokenizer: any; bos is left out where it has none.
        template: words around the turns.
        max_length: ids beyond it are cut off.
        columns: what a model family adds; None = text only.
        special_tokens_in_text: what becomes of special tokens that a record's text holds.
        videos: puts frames in the places of videos; None = records with videos are refused.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: PromptTemplate,
        max_length: int,
        columns: SampleColumns | None = None,
        special_tokens_in_text: Policy = "split",
        videos: VideoExpander | None = None,
    ) -> None:
        self.videos = videos
        self.tokenizer = tokenizer
        self.template = template
        self.max_length = max_length
        self.columns = columns
        self.special_tokens_in_text = check_policy(special_tokens_in_text)
        fields = {} if columns is None else columns.fields
        self.schema = pa.schema([*TEXT_SCHEMA, *(pa.field(name, kind) for name, kind in fields.items())])

    def __call__(self, records: Sequence[Record]) -> EncodedBatch:
        """Encodes one batch; samples that `max_length` left without a supervised token are dropped, counted."""
        counts: Counter[str] = Counter(records=len(records), kept=0)
        problems: list[str] = []
        notes: dict[str, list[str]] = {}
        conversations: list[Conversation] = []
        for record in records:
            try:
                conversation = parse_record(record.value, record.index, self.videos is not None)
            except RecordError as error:
                problems.append(str(error))
                continue
            if conversation.turns:
                conversations.append(conversation)
            else:
                counts["dropped: nobody answers"] += 1
        if self.videos is not None:
            expanded = self.videos(conversations)
            problems += [str(one) for one in expanded if isinstance(one, RecordError)]
            counts.update(f"dropped: {one.reason}" for one in expanded if isinstance(one, Dropped))
            conversations = [one for one in expanded if isinstance(one, Conversation)]
        kept = self._tokenise(conversations, counts, problems, notes)
        tokens: Sequence[int | None] = [len(encoded.input_ids) for _, encoded in kept]
        extra: dict[str, Sequence[Any]] = {}
        if self.columns is not None and kept:
            added = self.columns.add([talk for talk, _ in kept], [encoded for _, encoded in kept])
            counts.update(added.counts)
            problems += added.problems
            extra, tokens = added.columns, added.tokens
        chosen = [number for number, count in enumerate(tokens) if count is not None]
        counts["kept"] = len(chosen)
        batch = self._batch([kept[number] for number in chosen], extra, chosen)
        index = np.zeros(len(chosen), INDEX)
        for row, number in enumerate(chosen):
            talk, encoded = kept[number]
            index[row] = (len(encoded.input_ids), tokens[number], len(talk.images))
        return EncodedBatch(batch, index, counts, problems, notes)

    def _tokenise(
        self,
        conversations: Sequence[Conversation],
        counts: Counter[str],
        problems: list[str],
        notes: dict[str, list[str]],
    ) -> list[tuple[Conversation, Encoded]]:
        kept: list[tuple[Conversation, Encoded]] = []
        policy = self.special_tokens_in_text
        all_encoded = encode_conversations(conversations, self.tokenizer, self.template, self.max_length, policy)
        for conversation, encoded in zip(conversations, all_encoded, strict=True):
            if problem := special_token_problem(conversation, encoded, policy):
                problems.append(problem)
                continue
            for note in record_notes(conversation, encoded, policy):
                counts[note] += 1
                if len(first := notes.setdefault(note, [])) < NAMED:
                    first.append(conversation.id)
            if not encoded.num_supervised:
                silent = not any(turn.supervised for turn in conversation.turns)
                counts["dropped: no answer with loss" if silent else _TOO_LONG] += 1
                continue
            counts["cut off: samples"] += encoded.num_truncated > 0
            counts["cut off: supervised tokens"] += encoded.num_truncated_labels
            counts["cut off: pictures"] += encoded.num_truncated_images
            if encoded.num_truncated_images:
                # a picture whose place was cut off is not loaded either
                conversation = conversation.without_last_images(encoded.num_truncated_images)
            kept.append((conversation, encoded))
        return kept

    def _batch(
        self, kept: Sequence[tuple[Conversation, Encoded]], extra: dict[str, Sequence[Any]], chosen: Sequence[int]
    ) -> pa.RecordBatch:
        columns: dict[str, Any] = {
            "id": pa.array([talk.id for talk, _ in kept], pa.string()),
            "images": pa.array([talk.images for talk, _ in kept], pa.list_(pa.string())),
            "input_ids": _ids_column([encoded.input_ids for _, encoded in kept]),
            "labels": _ids_column([encoded.labels for _, encoded in kept]),
        }
        for name, values in extra.items():
            columns[name] = pa.array([values[number] for number in chosen], self.schema.field(name).type)
        empty = pa.array([], pa.null())
        arrays = [columns.get(field.name, empty).cast(field.type) for field in self.schema]
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)


def _ids_column(lists: Sequence[Sequence[int]]) -> pa.ListArray:
    """A list column by way of one flat array: pyarrow's own conversion looks at every number twice."""
    lengths = [len(ids) for ids in lists]
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int32)
    flat = np.fromiter(chain.from_iterable(lists), np.int32, count=int(offsets[-1]))
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat))
