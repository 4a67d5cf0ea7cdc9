"""Ids by words equal the tokenizer's own, for every kind of text; other tokenizers are told apart."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers
from transformers import PreTrainedTokenizerFast

from tests.tiny_tokenizers import byte_level, llama_folder, random_texts, unigram, wordpiece
from xtuner.data.text.conversations import Conversation
from xtuner.data.text.templates import PromptTemplate, Turn
from xtuner.data.text.tokenizer import build_tokenizer
from xtuner.data.text.tokenizing import encode_conversations
from xtuner.data.text.word_cache import LLAMA3_PATTERN, WordCache, cuts_at_spaces, unpack

PARITY = Path(__file__).parents[3] / "parity/data/d_dataset"


@cache
def tokenizer(kind: str) -> Tokenizer:
    if kind.startswith("tok_"):
        return Tokenizer.from_file(str(PARITY / kind / "tokenizer.json"))
    if kind.startswith("llama2"):
        with TemporaryDirectory() as folder:
            legacy, prefix = "legacy" in kind, "bare" not in kind
            llama_folder(Path(folder), legacy=legacy, add_dummy_prefix=prefix)
            return build_tokenizer(folder).backend_tokenizer
    if kind == "qwen2":
        return byte_level(LLAMA3_PATTERN.replace("{1,3}", ""), normalizers.NFC())
    return byte_level(LLAMA3_PATTERN if kind == "llama3" else None)


KINDS = ("llama2", "llama2 legacy", "llama2 bare", "tok_vicuna", "tok_phi3_chat", "gpt2", "llama3", "qwen2")
SPACES = (" ", "  ", "\n", "\t", "\u00a0", "\r\n", "\x1c", "\u2581")
WORDS = ("the", "bus", "it's", "don't", "'s", "A", "a", ".", "(", "12", "é", "e\u0301", "\u0301", "汉", "😀")
pieces = st.sampled_from((*SPACES, *WORDS, "<s>", "</s>", "<|im_end|>", "<|end|>", "<|user|>"))
texts = st.one_of(st.text(max_size=30), st.lists(pieces, max_size=12).map("".join))


def by_words(backend: Tokenizer) -> Callable[[Sequence[str]], list[list[int]]]:
    words = WordCache(backend)
    return lambda texts: list(map(unpack, words.encode(texts)))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None)
@given(batch=st.lists(texts, min_size=1, max_size=6))
@example(batch=["`<s> X </s>` is", "the <|end|>  bus", "a <|user|> b", " a", "a ", "a \u0301b"])
@example(batch=["the <|im_end|>  bus", " \u2581 a \u2581b\u2581 c", "a\u2581 b \u2581c"])
def test_ids_equal_the_tokenizers_own(kind: str, batch: list[str]) -> None:
    backend = tokenizer(kind)
    assert cuts_at_spaces(backend)
    encode = by_words(backend)
    wanted = [backend.encode(text, add_special_tokens=False).ids for text in batch]
    # a second time from what was learnt
    assert encode(batch) == encode(batch) == wanted


FAST, SLOW = 5_000, 200_000


class TestManyTexts:
    """Ids by the way of training against the tokenizer's own, for tokenizers with a cache and for those without."""

    KINDS = ("llama2", "llama2 legacy", "gpt2", "llama3", "qwen2", "unigram", "wordpiece")

    def check(self, kind: str, count: int, seed: int) -> None:
        others = {"unigram": unigram, "wordpiece": wordpiece}
        backend = others[kind]() if kind in others else tokenizer(kind)
        assert cuts_at_spaces(backend) == (kind not in others)
        ours = self.without_cache(backend) if kind in others else by_words(backend)
        batch = [text for text in random_texts(count, seed, () if kind in others else ("</s>", "<|im_end|>")) if text]
        for start in range(0, count, 1000):
            part = batch[start : start + 1000]
            own = [encoding.ids for encoding in backend.encode_batch(part, add_special_tokens=False)]
            different = [text for text, a, b in zip(part, ours(part), own, strict=True) if a != b]
            assert not different, f"{kind}: {len(different)} texts, first {different[0]!r}"

    @staticmethod
    def without_cache(backend: Tokenizer) -> Callable[[list[str]], list[list[int]]]:
        whole = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
        template = PromptTemplate(name="bare", input="{input}")

        def encode(texts: list[str]) -> list[list[int]]:
            talks = [Conversation("", (), (Turn("a", text),), 0) for text in texts]
            one, eos = len(backend.encode("a").ids), 1
            return [
                encoded.input_ids[one:-eos]
                for encoded in encode_conversations(talks, whole, template, max_length=10**6)
            ]

        return encode

    @pytest.mark.parametrize("kind", KINDS)
    def test_some(self, kind: str) -> None:
        self.check(kind, FAST // len(self.KINDS) + 1, seed=1)

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", KINDS)
    def test_many(self, kind: str) -> None:
        self.check(kind, SLOW // len(self.KINDS) + 1, seed=2)


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
    encode = by_words(tokenizer("llama3"))
    for text in ("the bus is red", "what colour is it", "the bus is red"):
        assert encode([text]) == [tokenizer("llama3").encode(text).ids]
