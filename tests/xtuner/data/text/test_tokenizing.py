from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from tests.tiny_tokenizers import byte_level
from xtuner.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from xtuner.data.text.conversations import Conversation
from xtuner.data.text.templates import TEMPLATES, Turn, get_template
from xtuner.data.text.tokenizing import encode_conversation, encode_conversations, encode_prompt
from xtuner.errors import XTunerError


def conversation(*turns: Turn, images: int = 0) -> Conversation:
    return Conversation(id="a", images=("x.png",) * images, turns=turns, index=0)


def test_hand_worked(tokenizer: PreTrainedTokenizerFast) -> None:
    encoded = encode_conversation(
        conversation(Turn("<image>\nQ", "A"), images=1), tokenizer, get_template("bare"), max_length=100
    )
    newline, question, answer = (
        tokenizer("\n").input_ids[0],
        tokenizer("Q").input_ids[0],
        tokenizer("A").input_ids[0],
    )
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    assert encoded.input_ids == [bos, IMAGE_TOKEN_INDEX, newline, question, answer, eos, newline]
    assert encoded.labels == [IGNORE_INDEX] * 4 + [answer, eos, IGNORE_INDEX]
    assert (encoded.num_supervised, encoded.num_truncated) == (2, 0)


def test_a_tokenizer_without_bos_gets_none(make_tokenizer: Callable[..., PreTrainedTokenizerFast]) -> None:
    tokenizer = make_tokenizer(eos_token="</s>")
    encoded = encode_conversation(conversation(Turn("Q", "A")), tokenizer, get_template("bare"), 100)
    assert tokenizer.decode(encoded.input_ids) == "QA</s>\n"


def test_a_tokenizer_without_eos_needs_a_suffix(
    make_tokenizer: Callable[..., PreTrainedTokenizerFast],
) -> None:
    tokenizer = make_tokenizer(bos_token="<s>")
    assert encode_conversation(conversation(Turn("Q", "A")), tokenizer, get_template("chatml"), 999).num_supervised
    with pytest.raises(XTunerError, match="no eos token"):
        encode_conversation(conversation(Turn("Q", "A")), tokenizer, get_template("vicuna"), 999)


def test_cut_off_tokens_and_pictures_are_counted(tokenizer: PreTrainedTokenizerFast) -> None:
    talk = conversation(Turn("Q", "AB"), Turn("<image>", "C"), images=1)
    # bos Q A B eos newline | bos picture C eos newline
    cut = encode_conversation(talk, tokenizer, get_template("bare"), max_length=4)
    assert len(cut.input_ids) == len(cut.labels) == 4
    assert (cut.num_truncated, cut.num_truncated_labels, cut.num_truncated_images) == (7, 3, 1)
    assert encode_conversation(talk, tokenizer, get_template("bare"), max_length=2).num_supervised == 0


class TestBosOnce:
    """SmolLM2's bos is <|im_start|>, with which every ChatML prompt begins."""

    def smollm(self, bos: str = "<|im_start|>") -> PreTrainedTokenizerFast:
        return PreTrainedTokenizerFast(tokenizer_object=byte_level(), bos_token=bos, eos_token="<|im_end|>")

    @pytest.mark.parametrize("name", sorted(TEMPLATES))
    @pytest.mark.parametrize("system", ["", "Be brief."])
    def test_never_doubled(self, name: str, system: str) -> None:
        tokenizer = self.smollm()
        talk = [Turn("a bus", "two", system), Turn("a horse", "the")]
        ids = encode_conversation(conversation(*talk), tokenizer, get_template(name), 999).input_ids
        bos = tokenizer.bos_token_id
        assert ids[0] == bos
        assert all(pair != (bos, bos) for pair in pairwise(ids))
        prompt = encode_prompt([Turn("a bus", None, system)], tokenizer, get_template(name))
        assert ids[: len(prompt)] == prompt

    def test_chatml_is_what_the_model_was_trained_with(self) -> None:
        tokenizer = self.smollm()
        ids = encode_prompt([Turn("a bus")], tokenizer, get_template("chatml"))
        text = "<|im_start|>user\na bus<|im_end|>\n<|im_start|>assistant\n"
        assert ids == tokenizer(text, add_special_tokens=False).input_ids

    def test_another_bos_stays(self) -> None:
        tokenizer = self.smollm(bos="<s>")
        talk = conversation(Turn("<image>\na bus", "two"), Turn("a horse", "the"), images=1)
        for name, count in (("chatml", 1), ("vicuna", 2)):
            ids = encode_conversation(talk, tokenizer, get_template(name), 999).input_ids
            assert ids.count(tokenizer.bos_token_id) == count


texts = st.text(alphabet="ab <>\n{}é汉", max_size=12)
turns_strategy = st.lists(st.builds(Turn, input=texts, output=texts, system=st.sampled_from(["", "S"])), min_size=1)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(turns=turns_strategy, name=st.sampled_from(sorted(TEMPLATES)))
def test_a_prompt_is_the_beginning_of_the_trained_ids(
    tokenizer: PreTrainedTokenizerFast, turns: list[Turn], name: str
) -> None:
    template = get_template(name)
    trained = encode_conversation(conversation(*turns), tokenizer, template, max_length=10**6)
    prompt = encode_prompt([*turns[:-1], Turn(turns[-1].input, system=turns[-1].system)], tokenizer, template)
    assert trained.input_ids[: len(prompt)] == prompt
    assert trained.labels[len(prompt)] != IGNORE_INDEX


def test_many_at_once_equal_one_by_one(tokenizer: PreTrainedTokenizerFast) -> None:
    talks = [conversation(Turn(f"question {n % 3}", "yes" * n)) for n in range(9)]
    template = get_template("vicuna")
    together = encode_conversations(talks, tokenizer, template, 60)
    assert together == [encode_conversation(talk, tokenizer, template, 60) for talk in talks]
