"""Token ids and labels of conversations, tokenised piece by piece.

Each piece of a rendered conversation is tokenised on its own, so where an answer begins and ends is known
exactly and a prompt's ids are the beginning of the ids that were trained. Many conversations share one call
of the tokenizer.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from xtuner.constants import IGNORE_INDEX, IMAGE_TOKEN, PICTURE_INDICES, VIDEO_TOKEN_INDEX
from xtuner.data.records.messages import check_text
from xtuner.data.text.conversations import Conversation
from xtuner.data.text.specials import Policy, SpecialTokens, refusal, special_tokens
from xtuner.data.text.templates import Piece, PieceKind, PromptTemplate, Turn
from xtuner.data.text.word_cache import WordCache, cuts_at_spaces, pack, unpack
from xtuner.errors import XTunerError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_IGNORED = pack([IGNORE_INDEX])
_PICTURE, _FRAME, _VIDEO = (pack([place]) for place in (*PICTURE_INDICES, VIDEO_TOKEN_INDEX))
_WIDTH = len(_PICTURE)
_MANY = 100
"""Texts of one call from which on looking words up pays."""


@dataclass(frozen=True)
class Encoded:
    """Ids and labels of one conversation.

    Attributes:
        input_ids: T token ids; `IMAGE_TOKEN_INDEX` at the place of each picture, `FRAME_TOKEN_INDEX` at that of each
            frame of a video.
        labels: T ids, `IGNORE_INDEX` where there is no loss.
        num_truncated: tokens that `max_length` cut off.
        num_truncated_labels: supervised tokens that `max_length` cut off.
        num_truncated_images: pictures whose place `max_length` cut off.
        special_words: special tokens that stand in its text, see `xtuner.data.text.specials`.
    """

    input_ids: list[int]
    labels: list[int]
    num_truncated: int = 0
    num_truncated_labels: int = 0
    num_truncated_images: int = 0
    special_words: tuple[str, ...] = ()

    @property
    def num_supervised(self) -> int:
        """Tokens that carry loss."""
        return len(self.labels) - self.labels.count(IGNORE_INDEX)


def encode_conversation(
    conversation: Conversation,
    tokenizer: PreTrainedTokenizerBase,
    template: PromptTemplate,
    max_length: int,
    special_tokens_in_text: Policy = "split",
) -> Encoded:
    """`encode_conversations` of one conversation."""
    return encode_conversations([conversation], tokenizer, template, max_length, special_tokens_in_text)[0]


def encode_conversations(
    conversations: Sequence[Conversation],
    tokenizer: PreTrainedTokenizerBase,
    template: PromptTemplate,
    max_length: int,
    special_tokens_in_text: Policy = "split",
) -> list[Encoded]:
    """Tokenises answered conversations.

    Args:
        conversations: each with at least one turn.
        tokenizer: any; bos is left out where it has none.
        template: words around the turns.
        max_length: ids beyond it are cut off; a picture counts as one.
        special_tokens_in_text: see `Policy`. What is to be refused is told by `Encoded.special_words`.

    Returns:
        One `Encoded` per conversation, in order. Unsupervised results are returned too: the caller drops
        and counts them.
    """
    with _no_garbage_collection():
        rendered = [template.render(conversation.turns) for conversation in conversations]
        ids = _PieceIds(rendered, tokenizer, special_tokens(tokenizer, template), special_tokens_in_text)
        return [_join(pieces, ids, max_length) for pieces in rendered]


def encode_prompt(
    turns: Sequence[Turn],
    tokenizer: PreTrainedTokenizerBase,
    template: PromptTemplate,
    special_tokens_in_text: Policy = "split",
    answer_start: str = "",
) -> list[int]:
    """Returns the ids of a prompt, ending where the answer to the last turn (`output` None) starts.

    Args:
        turns: at least one.
        tokenizer: any; bos is left out where it has none.
        template: words around the turns.
        special_tokens_in_text: see `Policy`.
        answer_start: words that the answer begins with; their ids follow.

    Raises:
        SampleError: special tokens in the text, where these are refused.
    """
    pieces = template.render(turns, add_generation_prompt=True)
    if answer_start:
        pieces.append(Piece(PieceKind.TEXT, answer_start, words=("", answer_start)))
    return encode_pieces(pieces, tokenizer, template, special_tokens_in_text)


def encode_pieces(
    pieces: Sequence[Piece],
    tokenizer: PreTrainedTokenizerBase,
    template: PromptTemplate,
    special_tokens_in_text: Policy = "split",
) -> list[int]:
    """Returns the ids of rendered pieces; see `encode_prompt`.

    Raises:
        SampleError: half a character, or special tokens in the text where these are refused.
    """
    for piece in pieces:
        check_text(piece.text, "the text")
    ids = _PieceIds([pieces], tokenizer, special_tokens(tokenizer, template), special_tokens_in_text)
    encoded = _join(pieces, ids, max_length=None)
    if encoded.special_words and special_tokens_in_text == "refuse":
        raise refusal(encoded.special_words)
    return encoded.input_ids


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Many small lists and no cycles: looking for those took a fifth of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class _PieceIds:
    """Ids of each distinct text and of what is no text, packed; separators and short answers repeat often.

    Args:
        rendered: pieces of all conversations.
        tokenizer: any.
        special: its special tokens.
        policy: what becomes of those that stand in the text.

    Attributes:
        own: ids by text or kind.
        foreign: ids by `Piece.words` of texts that hold a special token of others, which come before those of `own`.
        special_words: these special tokens, by `Piece.words`.
    """

    def __init__(
        self,
        rendered: Sequence[Sequence[Piece]],
        tokenizer: PreTrainedTokenizerBase,
        special: SpecialTokens,
        policy: Policy,
    ) -> None:
        keys = dict.fromkeys(piece.text or piece.kind for pieces in rendered for piece in pieces)
        texts = [key for key in keys if isinstance(key, str)]
        self.special_words = _special_words(rendered, set(filter(special.search, texts)), special)
        # kept ones are what the tokenizer makes of them anyway; a picture's place they must not become
        foreign = [words for words, found in self.special_words.items() if policy != "keep" or IMAGE_TOKEN in found]
        encoded = special.encode(foreign, policy == "keep") if foreign else ()
        self.foreign = dict(zip(foreign, map(pack, encoded), strict=True))
        if foreign:
            own = (piece for pieces in rendered for piece in pieces if piece.words not in self.foreign)
            texts = list(dict.fromkeys(piece.text for piece in own if piece.text))
        self.own: dict[str | PieceKind, bytes] = {
            key: _special(key, tokenizer) for key in keys if isinstance(key, PieceKind)
        }
        self.own.update(zip(texts, _tokenize(texts, tokenizer), strict=True))


def _special_words(
    rendered: Sequence[Sequence[Piece]], suspects: set[str], special: SpecialTokens
) -> dict[tuple[str, ...], list[str]]:
    """The special tokens that the template did not write, by the words of the piece."""
    if not suspects:
        return {}
    words = {piece.words for pieces in rendered for piece in pieces if piece.words and piece.text in suspects}
    return {one: found for one in words if (found := special.in_words(one))}


def _tokenize(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[bytes]:
    if len(texts) >= _MANY and (words := _word_cache(tokenizer)) is not None:
        return words.encode(texts)
    if tokenizer.is_fast:
        # the batch call of transformers costs as much again as the tokenising
        backend = tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        return [pack(encoding.ids) for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]
    # verbose: a piece longer than the tokenizer's model_max_length is cut by max_length, no need to warn
    return list(map(pack, tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]))


_word_caches: WeakKeyDictionary[PreTrainedTokenizerBase, WordCache | None] = WeakKeyDictionary()


def _word_cache(tokenizer: PreTrainedTokenizerBase) -> WordCache | None:
    """The tokenizer's cache of words; None where its ids are not those of words."""
    if tokenizer not in _word_caches:
        suits = tokenizer.is_fast and cuts_at_spaces(tokenizer.backend_tokenizer)
        _word_caches[tokenizer] = WordCache(tokenizer.backend_tokenizer) if suits else None
    return _word_caches[tokenizer]


def _join(pieces: Sequence[Piece], ids_of: _PieceIds, max_length: int | None) -> Encoded:
    all_ids: list[bytes] = []
    all_labels: list[bytes] = []
    bos = b""
    # looked up once: this loop is a good part of the tokenising
    own, foreign, bos_kind = ids_of.own, ids_of.foreign, PieceKind.BOS
    for piece in pieces:
        ids = foreign[piece.words] if foreign and piece.words in foreign else own[piece.text or piece.kind]
        if piece.kind is bos_kind:
            bos = ids
            continue
        # a text may begin with bos itself: SmolLM2's is <|im_start|>
        if bos and not (piece.text and ids.startswith(bos)):
            all_ids.append(bos)
            all_labels.append(_IGNORED)
        bos = b""
        all_ids.append(ids)
        all_labels.append(ids if piece.supervised else _IGNORED * (len(ids) // _WIDTH))
    if bos:
        # a question of no words
        all_ids.append(bos)
        all_labels.append(_IGNORED)
    input_ids, labels = unpack(b"".join(all_ids)), unpack(b"".join(all_labels))
    found: tuple[str, ...] = ()
    if ids_of.special_words:
        words = (word for piece in pieces for word in ids_of.special_words.get(piece.words, ()))
        found = tuple(dict.fromkeys(words))
    if max_length is None or len(input_ids) <= max_length:
        return Encoded(input_ids, labels, special_words=found)
    cut = labels[max_length:]
    return Encoded(
        input_ids[:max_length],
        labels[:max_length],
        num_truncated=len(cut),
        num_truncated_labels=len(cut) - cut.count(IGNORE_INDEX),
        num_truncated_images=sum(map(input_ids[max_length:].count, PICTURE_INDICES)),
        special_words=found,
    )


def _special(kind: PieceKind, tokenizer: PreTrainedTokenizerBase) -> bytes:
    if kind is PieceKind.IMAGE:
        return _PICTURE
    if kind in (PieceKind.FRAME, PieceKind.VIDEO):
        return _FRAME if kind is PieceKind.FRAME else _VIDEO
    if kind is PieceKind.BOS:
        return b"" if tokenizer.bos_token_id is None else pack([tokenizer.bos_token_id])
    if tokenizer.eos_token_id is None:
        raise XTunerError("the tokenizer has no eos token, so answers would never end: set 'eos_token' in its config.")
    return pack([tokenizer.eos_token_id])
