"""A fast tokenizer of Llama's kind (BPE with byte fallback), in which each word of the world is one token."""

from __future__ import annotations

import string

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

from tools.tiny_world.records import world_words

_SPECIAL = ("<unk>", "<s>", "</s>")
_WORD_STARTS = ("▁", "\n")
_CAPITALISED_ONLY = "\n"


def _chains(words: list[str]) -> dict[tuple[str, str], None]:
    """Returns the merges that grow each word from its start, one character at a time.

    All merges begin at a word's start, so none competes inside a word, and no training is needed that could
    differ between versions. After a line break, where prompts begin, words are known with a capital only.
    """
    merges: dict[tuple[str, str], None] = {}
    for start in _WORD_STARTS:
        for word in words:
            if start == _CAPITALISED_ONLY and not word[0].isupper():
                continue
            grown = start
            for character in word:
                merges[grown, character] = None
                grown += character
    return merges


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Returns the tokenizer of the tiny LLM: bos 1, eos 2, unk 0, which also pads, as in Vicuna."""
    merges = _chains(world_words())
    characters = sorted({*string.digits, *string.ascii_letters, *string.punctuation, *_WORD_STARTS})
    pieces = [*_SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *characters]
    pieces += ["".join(pair) for pair in merges]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    bpe = models.BPE(vocab=vocab, merges=list(merges), unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in _SPECIAL])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<unk>",
        model_max_length=2048,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )
