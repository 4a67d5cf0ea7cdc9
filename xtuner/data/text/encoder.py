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
    """A record batch with its `INDEX`, counts (kept, dropped, cut off), and a sentence per faulty record."""

    batch: pa.RecordBatch
    index: np.ndarray
    counts: Counter[str]
    problems: list[str]


class RecordEncoder:
    """Makes record batches of records; pickled into the worker processes.

    Args:
        tokenizer: any; bos is left out where it has none.
        template: words around the turns.
        max_length: ids beyond it are cut off.
        columns: what a model family adds; None = text only.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: PromptTemplate,
        max_length: int,
        columns: SampleColumns | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.max_length = max_length
        self.columns = columns
        fields = {} if columns is None else columns.fields
        self.schema = pa.schema([*TEXT_SCHEMA, *(pa.field(name, kind) for name, kind in fields.items())])

    def __call__(self, records: Sequence[Record]) -> EncodedBatch:
        """Encodes one batch; samples that `max_length` left without a supervised token are dropped, counted."""
        counts: Counter[str] = Counter(records=len(records), kept=0)
        problems: list[str] = []
        conversations: list[Conversation] = []
        for record in records:
            try:
                conversation = parse_record(record.value, record.index)
            except RecordError as error:
                problems.append(str(error))
                continue
            if conversation.turns:
                conversations.append(conversation)
            else:
                counts["dropped: nobody answers"] += 1
        kept = self._tokenise(conversations, counts)
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
        return EncodedBatch(batch, index, counts, problems)

    def _tokenise(
        self, conversations: Sequence[Conversation], counts: Counter[str]
    ) -> list[tuple[Conversation, Encoded]]:
        kept: list[tuple[Conversation, Encoded]] = []
        all_encoded = encode_conversations(conversations, self.tokenizer, self.template, self.max_length)
        for conversation, encoded in zip(conversations, all_encoded, strict=True):
            if not encoded.num_supervised:
                counts["dropped: no supervised token within max_length"] += 1
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
