"""What of a data file training leaves out, cuts or reads as text, sample by sample."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice

from mg_llava.data.box_columns import object_room
from mg_llava.data.prepared_sources import SampleMaker
from mg_llava.pictures.pooling import FramePooling
from xtuner.constants import FRAME_TOKEN_INDEX, IMAGE_TOKEN_INDEX
from xtuner.data.records.json_stream import Record
from xtuner.data.store.shards import BATCH
from xtuner.data.text.conversations import Conversation, parse_record
from xtuner.data.text.encoder import record_notes, special_token_problem
from xtuner.data.text.templates import PromptTemplate
from xtuner.data.text.tokenizing import Encoded, encode_conversations
from xtuner.errors import XTunerError, counted

_POOLED = FramePooling(2)
"""What is named where frames are not pooled."""


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
    tokens = maker.processor.image_tokens.count(encoded.input_ids)
    room = object_room(maker.context_length, tokens)
    if room is not None and room < 0:
        return (
            f"longer than the context: {sample} has {tokens:,} text and image tokens, but the language model takes "
            f"{maker.context_length:,}; it is left out: {_what_fits(maker, encoded.input_ids)}"
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


def _what_fits(maker: SampleMaker, input_ids: Sequence[int]) -> str:
    """How many pictures or frames the context has room for beside a sample's words, frames also where they are pooled
    by 2.
    """
    each = maker.processor.image_tokens
    pictures, frames = input_ids.count(IMAGE_TOKEN_INDEX), input_ids.count(FRAME_TOKEN_INDEX)
    words = len(input_ids) - pictures - frames
    # pictures stay whole, so that videos have what they leave
    room = max(0, (maker.context_length or 0) - words - (pictures * each.picture if frames else 0))
    beside = f" and {counted(pictures, 'pictures')}" if frames and pictures else ""
    said = f"beside its {counted(words, 'tokens')} of text{beside} "
    if not frames:
        fit = f"{counted(room // each.picture, 'pictures')} of {each.picture:,} would fit, it has {pictures:,}"
        return f"{said}{fit}: take fewer, or a longer context."
    fit = f"{counted(room // each.frame, 'frames')} of {each.frame:,} would fit"
    advice = "lower frame_sampling.num_frames"
    if maker.processor.frame_pooling.side == 1:
        # a grid of one row cannot be pooled
        with suppress(XTunerError):
            pooled = maker.processor.tokens_of_frame(_POOLED)
            fit += f" ({room // pooled:,} of {pooled:,} with frame_pooling.side={_POOLED.side})"
    else:
        advice += " or raise frame_pooling.side"
    return f"{said}{fit}, it has {frames:,}: {advice}, or take a longer context."
