"""Ids by words equal the tokenizer's own, for every kind of text; other tokenizers are told apart."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from xtuner.data.text.word_cache import LLAMA3_PATTERN, WordCache, cuts_at_spaces

TEXTS = [
    "A man is riding a horse on the beach, and it's 12 o'clock.  Two   spaces,\n\nlines and\ttabs.",
    "What colour is the bus? White and red. the bus the bus",
]
PARITY = Path(__file__).parents[3] / "parity/data/d_dataset"
GPT2 = {"add_prefix_space": False, "use_regex": True}


@cache
def tokenizer(kind: str) -> Tokenizer:
    if kind.startswith("tok_"):
        return Tokenizer.from_file(str(PARITY / kind / "tokenizer.json"))
    made = Tokenizer(models.BPE())
    if kind == "gpt2":
        made.pre_tokenizer = pre_tokenizers.ByteLevel(**GPT2)
    else:
        made.normalizer = normalizers.NFC() if kind == "qwen2" else None
        pattern = LLAMA3_PATTERN.replace("{1,3}", "") if kind == "qwen2" else LLAMA3_PATTERN
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        made.pre_tokenizer = pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=["<|end|>"], show_progress=False
    )
    made.train_from_iterator(TEXTS * 3, trainer)
    return made


KINDS = ("tok_vicuna", "tok_phi3_chat", "gpt2", "llama3", "qwen2")
SPACES = (" ", "  ", "\n", "\t", "\u00a0", "\r\n", "\x1c", "\u2581")
WORDS = ("the", "bus", "it's", "don't", "'s", "A", "a", ".", "(", "12", "é", "e\u0301", "\u0301", "汉", "😀")
pieces = st.sampled_from((*SPACES, *WORDS, "<s>", "</s>", "<|end|>", "<|user|>"))
texts = st.one_of(st.text(max_size=30), st.lists(pieces, max_size=12).map("".join))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None)
@given(batch=st.lists(texts, min_size=1, max_size=6))
@example(batch=["`<s> X </s>` is", "the <|end|>  bus", "a <|user|> b", " a", "a ", "a \u0301b"])
def test_ids_equal_the_tokenizers_own(kind: str, batch: list[str]) -> None:
    backend = tokenizer(kind)
    assert cuts_at_spaces(backend)
    words = WordCache(backend)
    wanted = [backend.encode(text, add_special_tokens=False).ids for text in batch]
    # a second time from what was learnt
    assert words.encode(batch) == words.encode(batch) == wanted


class TestToldApart:
    def changed(self, kind: str, **changes: object) -> Tokenizer:
        content = json.loads(tokenizer(kind).to_str())
        return Tokenizer.from_str(json.dumps({**content, **changes}))

    def test_entries_that_cross_a_space(self) -> None:
        content = json.loads(tokenizer("tok_vicuna").to_str())
        model = content["model"]
        assert cuts_at_spaces(self.changed("tok_vicuna"))
        crossing = {**model, "vocab": {**model["vocab"], "s\u2581t": len(model["vocab"])}}
        assert not cuts_at_spaces(self.changed("tok_vicuna", model=crossing))
        assert not cuts_at_spaces(self.changed("tok_vicuna", model={**model, "dropout": 0.1}))

    def test_other_words_normalizers_and_models(self) -> None:
        other = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
        assert not cuts_at_spaces(self.changed("gpt2", pre_tokenizer=other))
        assert not cuts_at_spaces(self.changed("gpt2", pre_tokenizer={"type": "Whitespace"}))
        assert not cuts_at_spaces(self.changed("gpt2", normalizer={"type": "Lowercase"}))
        assert not cuts_at_spaces(Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))

    def test_added_tokens_that_reach_over_spaces(self) -> None:
        for token in (AddedToken("two words"), AddedToken("<x>", lstrip=True), AddedToken("<x>", single_word=True)):
            made = self.changed("gpt2")
            made.add_tokens([token])
            assert not cuts_at_spaces(made)


def test_it_starts_anew_when_it_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xtuner.data.text.word_cache._MOST_WORDS", 2)
    words = WordCache(tokenizer("llama3"))
    for text in ("the bus is red", "what colour is it", "the bus is red"):
        assert words.encode([text]) == [tokenizer("llama3").encode(text).ids]
