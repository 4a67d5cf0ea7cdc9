"""Tiny tokenizers of the real families, with every shipped template's markers as special tokens."""

from __future__ import annotations

from collections.abc import Callable

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from xtuner.data.text.templates import TEMPLATES
from xtuner.data.text.word_cache import LLAMA3_PATTERN

MARKERS = sorted({marker for template in TEMPLATES.values() for marker in template.markers})
_ROLES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
_TEXTS = [
    "What is on the table? A red cup, before <s>9</s> euros.",
    "USER: two  spaces ASSISTANT: naïve, 汉字",
    *MARKERS,
]
_SPECIAL = ["<unk>", "<s>", "</s>", *MARKERS]


def _finish(backend: Tokenizer) -> PreTrainedTokenizerFast:
    backend.add_tokens(["<think>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, **_ROLES)


def byte_level() -> PreTrainedTokenizerFast:
    """Like Llama 3's and Qwen's."""
    backend = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(LLAMA3_PATTERN), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=_SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(_TEXTS * 3, trainer)
    return _finish(backend)


def whole_text() -> PreTrainedTokenizerFast:
    """Like Llama 2's: a space is a letter, bytes stand for what is unknown; merges spell ``</s>``."""
    letters = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"\u2581abcdehistwW<>/?.USERAN:T"]
    words = ["</", "s>", "<s", "\u2581a", "is", "th", "at", "\u2581th", "\u2581\u2581"]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys([*letters, *words]))}
    merges = [("<", "/"), ("s", ">"), ("</", "s>"), ("<", "s"), ("<s", ">"), ("\u2581", "a"), ("i", "s"), ("t", "h")]
    merges += [("a", "t"), ("\u2581", "th"), ("\u2581", "\u2581")]
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    backend.add_special_tokens(_SPECIAL)
    return _finish(backend)


def unigram() -> PreTrainedTokenizerFast:
    """Its model finds special tokens in text by itself."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=_SPECIAL, unk_token="<unk>", show_progress=False)
    backend.train_from_iterator(_TEXTS * 3, trainer)
    return _finish(backend)


def word_piece() -> PreTrainedTokenizerFast:
    """Like BERT's: lower case, no private characters."""
    backend = Tokenizer(models.WordPiece(unk_token="<unk>"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.train_from_iterator(
        _TEXTS * 3, trainers.WordPieceTrainer(vocab_size=200, special_tokens=_SPECIAL, show_progress=False)
    )
    return _finish(backend)


def word_level() -> PreTrainedTokenizerFast:
    """Words at spaces: ``</s>`` is a word of the vocabulary."""
    words = [*_SPECIAL, "USER:", "ASSISTANT:", "What", "is", "it"]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(_SPECIAL)
    return _finish(backend)


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    make.__name__: make for make in (byte_level, whole_text, unigram, word_piece, word_level)
}
