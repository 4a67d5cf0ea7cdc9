"""The tokenizer that vLLM asks: ids of training for whole conversations; nothing here needs vLLM."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
from PIL import Image

from mg_llava.boxes.selection import BoxSelection
from mg_llava.hf.processing import MGLLaVAProcessor
from mg_llava.serving.vllm.tokenizer import cut_by
from tests.special_tokenizers import TOKENIZERS
from tests.tiny_assistant import tiny_assistant
from tests.tiny_parts import NUM_IMAGE_TOKENS
from xtuner.constants import IMAGE_TOKEN
from xtuner.data.text.templates import TEMPLATES

IMAGE = {"type": "image"}
PICTURE = Image.new("RGB", (8, 8))
CONVERSATIONS = [
    [{"role": "user", "content": "What is it?"}],
    [{"role": "user", "content": [IMAGE, {"type": "text", "text": "Is  it red\n\nor blue?"}]}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [IMAGE, {"type": "text", "text": "a"}]},
        {"role": "assistant", "content": "b c"},
        {"role": "user", "content": [IMAGE, IMAGE, {"type": "text", "text": " d"}]},
    ],
]


@pytest.fixture(scope="module")
def image_processor(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_assistant(tmp_path_factory.mktemp("parts"))[0].image_processor


def make_processor(image_processor: Any, family: str, template: str) -> MGLLaVAProcessor:
    tokenizer = TOKENIZERS[family]()
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]}, replace_extra_special_tokens=False)
    return MGLLaVAProcessor(
        image_processor, tokenizer, TEMPLATES[template], BoxSelection(), NUM_IMAGE_TOKENS, with_objects=True
    )


@pytest.mark.parametrize("template", ["vicuna", "phi3_chat", "llama3_chat", "qwen_chat"])
@pytest.mark.parametrize("family", ["byte_level", "whole_text", "unigram"])
def test_one_text_gives_the_ids_of_the_processor(image_processor: Any, family: str, template: str) -> None:
    processor = make_processor(image_processor, family, template)
    tokenizer = cut_by(processor.tokenizer, processor)
    for messages in CONVERSATIONS:
        text = str(processor.apply_chat_template(messages))
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        pictures = ids.count(processor.image_token_id)
        whole = processor(images=[PICTURE] * pictures or None, text=text)["input_ids"][0].tolist()
        expanded = [[one] if one != processor.image_token_id else processor.picture_ids(0) for one in ids]
        assert sum(expanded, []) == whole
        assert tokenizer.encode(text) == ids
        assert tokenizer(text)["attention_mask"] == [1] * len(ids)


def test_an_earlier_answer_needs_the_cut(image_processor: Any) -> None:
    processor = make_processor(image_processor, "whole_text", "vicuna")
    text = str(processor.apply_chat_template(CONVERSATIONS[2]))
    assert cut_by(processor.tokenizer, processor)(text)["input_ids"] != processor.tokenizer(text)["input_ids"]


@pytest.mark.parametrize("family", ["byte_level", "whole_text", "unigram"])
def test_a_word_gets_no_bos_that_was_not_asked_for(image_processor: Any, family: str) -> None:
    processor = make_processor(image_processor, family, "vicuna")
    tokenizer = cut_by(processor.tokenizer, processor)
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    word = tokenizer.encode("red", add_special_tokens=False)
    assert word and word[0] != tokenizer.bos_token_id
    assert tokenizer.encode("red") == bos + word
    assert tokenizer.encode("", add_special_tokens=False) == []


class TestTruncation:
    @pytest.mark.parametrize(("side", "kept"), [("left", slice(-3, None)), ("right", slice(3))])
    def test_cuts_at_the_side_of_the_tokenizer(self, image_processor: Any, side: str, kept: slice) -> None:
        processor = make_processor(image_processor, "byte_level", "vicuna")
        tokenizer = cut_by(processor.tokenizer, processor)
        tokenizer.truncation_side = side
        whole = tokenizer("USER: What is it? ASSISTANT:")["input_ids"]
        assert tokenizer("USER: What is it? ASSISTANT:", truncation=True, max_length=3)["input_ids"] == whole[kept]
        assert tokenizer("USER: What is it? ASSISTANT:", truncation=False, max_length=3)["input_ids"] == whole


@pytest.mark.parametrize("twin", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_copies_for_other_threads(image_processor: Any, twin: Any) -> None:
    processor = make_processor(image_processor, "whole_text", "vicuna")
    tokenizer = cut_by(processor.tokenizer, processor)
    text = str(processor.apply_chat_template(CONVERSATIONS[2]))
    assert twin(tokenizer)(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_all_else_is_the_tokenizer_s(image_processor: Any) -> None:
    processor = make_processor(image_processor, "byte_level", "vicuna")
    plain = processor.tokenizer
    tokenizer = cut_by(plain, processor)
    assert tokenizer(["a b", "c"])["input_ids"] == plain(["a b", "c"])["input_ids"]
    assert "offset_mapping" in tokenizer("a b", return_offsets_mapping=True)
    ids = plain("What is it?")["input_ids"]
    assert tokenizer.decode(ids) == plain.decode(ids)
    assert tokenizer.get_vocab() == plain.get_vocab() and isinstance(tokenizer, type(plain))


def test_an_image_without_a_picture_is_beyond_the_vocabulary(image_processor: Any) -> None:
    """vLLM refuses ids beyond ``max_token_id``: it would look up a logit that the language model does not have."""
    processor = make_processor(image_processor, "whole_text", "vicuna")
    plain = copy.copy(processor.tokenizer)
    plain.__class__ = type("WithMost", (plain.__class__,), {"max_token_id": property(lambda self: len(self) - 1)})
    assert plain.max_token_id >= processor.image_token_id
    assert cut_by(plain, processor).max_token_id == processor.image_token_id - 1
