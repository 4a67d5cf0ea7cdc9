"""What of a data file training leaves out, cuts or reads as text, sample by sample."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from mg_llava.data.box_columns import object_room
from mg_llava.data.prepared_sources import SampleMaker
from xtuner.data.records.json_stream import Record
from xtuner.data.store.shards import BATCH
from xtuner.data.text.conversations import Conversation, parse_record
from xtuner.data.text.encoder import record_notes, special_token_problem
from xtuner.data.text.templates import PromptTemplate
from xtuner.data.text.tokenizing import Encoded, encode_conversations
from xtuner.errors import counted


def sample_notes(
    conversations: Iterable[Conversation],
    maker: SampleMaker,
    template: PromptTemplate,
    problems: list[str],
    watch: Callable[[Encoded], None] | None = None,
) -> Iterator[str]:
    """Yields a ``"kind: sentence"`` for what preparing leaves out, cuts or reads in another way than one might think.

    Args:
        conversations: of one data file, each with an answer.
        maker: says what is too long.
        template: words around the turns.
        problems: gets a sentence per record whose text is refused.
        watch: is shown every tokenised record.
    """
    stream = iter(conversations)
    while batch := list(islice(stream, BATCH)):
        policy = maker.special_tokens_in_text
        all_encoded = encode_conversations(batch, maker.tokenizer, template, maker.max_length, policy)
        for talk, encoded in zip(batch, all_encoded, strict=True):
            if watch is not None:
                watch(encoded)
            if problem := special_token_problem(talk, encoded, policy):
                problems.append(problem)
                continue
            yield from (f"{kind}: {talk.where}." for kind in record_notes(talk, encoded, policy))
            if note := _note(talk, encoded, maker):
                yield note


def no_answer(talk: Conversation) -> str:
    """Returns the ``"kind: sentence"`` for a record in which nobody answers."""
    return f"no answer: {talk.where} has no answer to a question; it is left out."


def why_left_out(record: Record, maker: SampleMaker, template: PromptTemplate) -> str:
    """Returns the ``"kind: sentence"`` for a record without a fault that the encoder made no sample of."""
    talk = parse_record(record.value, record.index)
    if not talk.turns:
        return no_answer(talk)
    policy = maker.special_tokens_in_text
    (encoded,) = encode_conversations([talk], maker.tokenizer, template, maker.max_length, policy)
    return _left_out(talk, encoded, maker) or f"left out: {talk.where} gives no sample."


def _left_out(talk: Conversation, encoded: Encoded, maker: SampleMaker) -> str | None:
    kept, cut = len(encoded.input_ids), encoded.num_truncated
    sample = f"sample '{talk.id}' (number {talk.index + 1})"
    if not any(turn.supervised for turn in talk.turns):
        return f'no answer with loss: the answers of {sample} have "loss": false or weight 0; it is left out.'
    if not encoded.num_supervised:
        return (
            f"answer beyond max_length: {sample} has {kept + cut:,} text tokens, and the first "
            f"{maker.max_length:,} hold none of an answer; it is left out."
        )
    num_images = len(talk.images) - encoded.num_truncated_images
    image_tokens = maker.processor.num_image_tokens
    room = object_room(maker.context_length, kept, num_images, image_tokens)
    if room is not None and room < 0:
        tokens = kept + num_images * (image_tokens - 1)
        return (
            f"longer than the context: {sample} has {tokens:,} text and image tokens, but the language model takes "
            f"{maker.context_length:,}; it is left out: {_what_fits(maker, kept, num_images)}"
        )
    return None


def _note(talk: Conversation, encoded: Encoded, maker: SampleMaker) -> str | None:
    if (left_out := _left_out(talk, encoded, maker)) or not encoded.num_truncated:
        return left_out
    kept, cut = len(encoded.input_ids), encoded.num_truncated
    sample = f"sample '{talk.id}' (number {talk.index + 1})"
    pictures = f" and {counted(encoded.num_truncated_images, 'pictures')}" if encoded.num_truncated_images else ""
    return (
        f"cut at max_length: {sample} has {kept + cut:,} text tokens; training drops the last {cut:,}, with "
        f"{counted(encoded.num_truncated_labels, 'tokens of answers')}{pictures}."
    )


def _what_fits(maker: SampleMaker, num_ids: int, num_images: int) -> str:
    """How many pictures or frames the context has room for beside a sample's words."""
    words, each = num_ids - num_images, maker.processor.num_image_tokens
    room = max(0, (maker.context_length or 0) - words) // each
    return (
        f"beside its {counted(words, 'tokens')} of text {counted(room, 'pictures')} or frames of {each:,} would fit, "
        f"it has {num_images:,}: take fewer (of a video: lower frame_sampling.num_frames), or a longer context."
    )
