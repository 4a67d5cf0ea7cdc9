"""Conversations to Arrow record batches, in this process or in several; the same batches either way."""

from __future__ import annotations

import multiprocessing
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import TYPE_CHECKING

import pyarrow as pa

from xtuner.data.conversations import Conversation
from xtuner.data.templates import PromptTemplate
from xtuner.data.tokenizing import Encoded, encode_conversations

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH = 1000
"""Conversations per record batch: fixed, so that the file does not depend on the number of processes."""

Counts = Counter[str]


def schema() -> pa.Schema:
    """Returns the columns of a prepared data set."""
    return pa.schema(
        {
            "id": pa.string(),
            "images": pa.list_(pa.string()),
            "input_ids": pa.list_(pa.int32()),
            "labels": pa.list_(pa.int32()),
            "length": pa.int32(),
        }
    )


def encoded_batches(
    batches: Iterable[list[Conversation]],
    tokenizer: PreTrainedTokenizerBase,
    template: PromptTemplate,
    max_length: int,
    processes: int,
) -> Iterator[tuple[pa.RecordBatch, Counts]]:
    """Yields a record batch and counts (kept, dropped, cut off) per batch of conversations, in order."""
    if processes == 1:
        for batch in batches:
            yield encode_batch(batch, tokenizer, template, max_length)
        return
    # spawn: the tokenizer's own threads do not survive a fork
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, _start_worker, (tokenizer, template, max_length)) as pool:
        waiting: deque[Future[tuple[pa.RecordBatch, Counts]]] = deque()
        for batch in batches:
            waiting.append(pool.submit(_encode_in_worker, batch))
            # bounded: the parser is faster than the tokenizer and would fill the memory
            if len(waiting) > 2 * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def encode_batch(
    conversations: list[Conversation],
    tokenizer: PreTrainedTokenizerBase,
    template: PromptTemplate,
    max_length: int,
) -> tuple[pa.RecordBatch, Counts]:
    """Tokenises one batch; samples that `max_length` left without a supervised token are dropped, counted."""
    counts: Counts = Counter()
    kept: list[tuple[Conversation, Encoded]] = []
    for conversation, encoded in zip(
        conversations, encode_conversations(conversations, tokenizer, template, max_length), strict=True
    ):
        if encoded.num_supervised:
            kept.append((conversation, encoded))
            counts["kept"] += 1
            counts["cut off: samples"] += encoded.num_truncated > 0
            counts["cut off: supervised tokens"] += encoded.num_truncated_labels
            counts["cut off: pictures"] += encoded.num_truncated_images
        else:
            counts["dropped: no supervised token within max_length"] += 1
    columns = [
        [conversation.id for conversation, _ in kept],
        # a picture whose place was cut off is not loaded either
        [_seen_images(conversation, encoded) for conversation, encoded in kept],
        [encoded.input_ids for _, encoded in kept],
        [encoded.labels for _, encoded in kept],
        [len(encoded.input_ids) for _, encoded in kept],
    ]
    arrays = [pa.array(values, type=field.type) for values, field in zip(columns, schema(), strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema()), counts


def _seen_images(conversation: Conversation, encoded: Encoded) -> tuple[str, ...]:
    return conversation.images[: len(conversation.images) - encoded.num_truncated_images]


_worker: list[tuple[PreTrainedTokenizerBase, PromptTemplate, int]] = []
"""In a worker process: what `encode_batch` needs, sent once."""


def _start_worker(tokenizer: PreTrainedTokenizerBase, template: PromptTemplate, max_length: int) -> None:
    _worker.append((tokenizer, template, max_length))


def _encode_in_worker(conversations: list[Conversation]) -> tuple[pa.RecordBatch, Counts]:
    return encode_batch(conversations, *_worker[0])
