"""The ids asked are the beginning of the ids trained, whoever asks: chat, page, endpoint, processor by both routes."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jinja2.exceptions import TemplateError
from PIL import Image

from mg_llava.boxes.selection import BoxSelection
from mg_llava.hf.processing import MGLLaVAProcessor
from mg_llava.inference.chat import ChatSession
from mg_llava.inference.messages import read_messages
from mg_llava.inference.prompts import Prompt
from mg_llava.serving.generation.tickets import Place
from mg_llava.serving.page import Page
from mg_llava.serving.page.actions import Given
from mg_llava.serving.requests.chat import RequestReader
from mg_llava.serving.requests.settings import Limits
from tests.mg_llava.serving.conftest import Preparing, data_url
from tests.special_tokenizers import MARKERS, TOKENIZERS
from tests.tiny_assistant import tiny_assistant
from tests.tiny_parts import NUM_IMAGE_TOKENS
from xtuner.constants import IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from xtuner.data.text.conversations import parse_record
from xtuner.data.text.templates import TEMPLATES, PromptTemplate
from xtuner.data.text.tokenizing import encode_conversation

PICTURE = Image.new("RGB", (8, 8), (200, 30, 30))
URL = data_url(PICTURE)
templates = pytest.mark.parametrize("template", TEMPLATES.values(), ids=lambda template: template.name)
plain_words = st.sampled_from(
    ["What", " is", "  ", "\n", "it?", "", " naïve", "a b", "USER:", "<think>", "汉 ", "ASSISTANT", "ASSISTANT:"]
)
any_words = st.one_of(plain_words, st.sampled_from([*MARKERS, "</s>", "<s>", IMAGE_TOKEN, " ASSISTANT:", " [/INST]"]))


def conversations(words: st.SearchStrategy[str]) -> st.SearchStrategy[list[dict[str, Any]]]:
    """Messages in any order; a picture as a part that says nothing else."""
    text = st.lists(words, max_size=4).map("".join)
    text_part = st.builds(lambda said: {"type": "text", "text": said}, text)
    picture = st.just({"type": "image_url"})

    def message(roles: Sequence[str], content: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
        return st.builds(lambda role, said: {"role": role, "content": said}, st.sampled_from(roles), content)

    user = message(["user"], st.one_of(text, st.lists(st.one_of(text_part, picture), min_size=1, max_size=4)))
    others = st.one_of(
        message(["system", "developer"], text),
        message(["assistant"], st.one_of(text, st.lists(text_part, min_size=1, max_size=2))),
    )
    return st.lists(st.one_of(user, others), min_size=1, max_size=6).map(
        lambda messages: [{"role": "user", "content": "What"}, *messages] if _asks_nothing(messages) else messages
    )


def _asks_nothing(messages: list[dict[str, Any]]) -> bool:
    return all(message["role"] != "user" for message in messages)


def with_pictures(messages: Sequence[dict[str, Any]], url: Any) -> list[dict[str, Any]]:
    """The same with a picture in each image part."""
    return [
        {
            **message,
            "content": [
                {**part, "image_url": url} if part["type"] == "image_url" else part for part in message["content"]
            ]
            if isinstance(message["content"], list)
            else message["content"],
        }
        for message in messages
    ]


class Askers:
    """Everything that asks, with one template and tokenizer.

    Args:
        assistant: a tiny one; its tokenizer and template are replaced.
        family: of the tokenizer.
        template: words around the turns.
    """

    def __init__(self, assistant: Any, family: str, template: PromptTemplate) -> None:
        self.assistant, self.tokenizer, self.template = assistant, TOKENIZERS[family](), template
        exported = TOKENIZERS[family]()
        exported.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]}, replace_extra_special_tokens=False)
        self.processor = MGLLaVAProcessor(
            assistant.image_processor, exported, template, BoxSelection(), NUM_IMAGE_TOKENS, with_objects=True
        )

    def trained(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        record = {"id": "x", "messages": with_pictures(messages, {"url": "a.png"})}
        return encode_conversation(parse_record(record, 0), self.tokenizer, self.template, 10**6).input_ids

    def reader(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        read = read_messages(messages, lambda _: (PICTURE, None))
        return self.assistant.prepare(read.turns, read.pictures, read.found).input_ids

    def endpoint(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        content = json.dumps({"messages": with_pictures(messages, {"url": URL})}).encode()
        reader = RequestReader(Preparing(self.assistant), "tiny", Limits(max_pictures=99))
        return reader.read(content, Place(math.inf)).prompt.input_ids

    def tokenized(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        return self._folded(self.processor.apply_chat_template(with_pictures(messages, PICTURE), tokenize=True))

    def rendered(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        text = self.processor.apply_chat_template(messages, tokenize=False)
        count = sum(
            part["type"] == "image_url"
            for one in messages
            if isinstance(one["content"], list)
            for part in one["content"]
        )
        return self._folded(self.processor(text=text, images=[PICTURE] * count)["input_ids"])

    def _folded(self, ids: Any) -> list[int]:
        """Ids with one place a picture, as in training."""
        row: list[int] = []
        left = 0
        for token in ids[0].tolist():
            if token != self.processor.image_token_id:
                row.append(token)
                left = 0
            elif left:
                left -= 1
            else:
                row.append(IMAGE_TOKEN_INDEX)
                left = NUM_IMAGE_TOKENS - 1
        return row


@pytest.fixture(scope="module")
def assistant(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_assistant(tmp_path_factory.mktemp("same_ids"), max_position_embeddings=100_000)[0]


@pytest.fixture(scope="module")
def picture_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("picture") / "red.png"
    PICTURE.save(path)
    return str(path)


_made: dict[tuple[str, str], Askers] = {}


def askers_of(assistant: Any, family: str, template: PromptTemplate) -> Askers:
    """Made once for each tokenizer and template."""
    key = family, template.name
    if key not in _made:
        _made[key] = Askers(assistant, family, template)
    found = _made[key]
    assistant.tokenizer, assistant.template = found.tokenizer, template
    return found


families = st.sampled_from(["byte_level", "whole_text", "word_level"])
many = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))


@templates
@many
@given(messages=conversations(any_words), family=families)
def test_any_text(assistant: Any, template: PromptTemplate, messages: list[dict[str, Any]], family: str) -> None:
    askers = askers_of(assistant, family, template)
    if messages[-1]["role"] == "assistant":
        messages = [*messages, {"role": "user", "content": "it?"}]
    trained = askers.trained([*messages, {"role": "assistant", "content": "a b"}])
    if all(one["role"] != "user" for one in messages[_answers(messages) :]):
        # a system message alone behind the last answer: there is no question to ask
        return
    asked = askers.reader(messages)
    assert trained[: len(asked)] == asked
    assert askers.endpoint(messages) == asked
    assert askers.tokenized(messages) == asked
    try:
        rendered = askers.rendered(messages)
    except TemplateError:
        return
    assert rendered == asked


@templates
@many
@given(messages=conversations(plain_words), family=families)
def test_the_text_route(assistant: Any, template: PromptTemplate, messages: list[dict[str, Any]], family: str) -> None:
    """Texts without special tokens and without the words before an answer are never refused, and give the same ids."""
    askers = askers_of(assistant, family, template)
    messages = [*messages, {"role": "user", "content": "it?"}]
    try:
        rendered = askers.rendered(messages)
    except TemplateError as error:
        assert "shows where an answer begins" in str(error) and template.around_input[1].strip() in str(messages)
        return
    assert rendered == askers.tokenized(messages)


@templates
@pytest.mark.parametrize("word", ["</s>", "<image>", "<|eot_id|>", "<|im_end|>"])
def test_the_rendered_string_refuses_special_tokens(assistant: Any, template: PromptTemplate, word: str) -> None:
    askers = askers_of(assistant, "byte_level", template)
    for role in ("user", "system", "assistant"):
        messages = [
            {"role": "user", "content": "a"},
            {"role": role, "content": f"a {word} b"},
            {"role": "user", "content": "a"},
        ]
        with pytest.raises(TemplateError, match="use apply_chat_template with tokenize=True"):
            askers.rendered(messages)
        assert askers.tokenized(messages) == askers.reader(messages)


@templates
@pytest.mark.parametrize("word", ["</s>", "<image>", "<|eot_id|>", "<|im_end|>"])
@pytest.mark.parametrize("cut", [1, 3])
def test_a_special_token_cut_in_two_is_not_joined(
    assistant: Any, template: PromptTemplate, word: str, cut: int
) -> None:
    """Messages of the user in a row are joined as they are."""
    askers = askers_of(assistant, "byte_level", template)
    picture = {"type": "image_url"}
    halves = [{"role": "user", "content": f"a {word[:cut]}"}, {"role": "user", "content": f"{word[cut:]} b"}]
    for messages in (halves, [*halves, {"role": "assistant", "content": "a"}, {"role": "user", "content": [picture]}]):
        with pytest.raises(TemplateError, match="use apply_chat_template with tokenize=True"):
            askers.rendered(messages)
        assert askers.tokenized(messages) == askers.reader(messages)
    whole = [{"role": "user", "content": [picture]}, {"role": "user", "content": "b"}, *halves[:1]]
    assert askers.rendered(whole) == askers.reader(whole)


@templates
@pytest.mark.parametrize("system", [None, "", "Be brief."])
def test_default_system_prompt(assistant: Any, template: PromptTemplate, system: str | None) -> None:
    default = replace(template, name=f"{template.name} with a default", default_system="You help.")
    askers = askers_of(assistant, "byte_level", default)
    messages = [] if system is None else [{"role": "system", "content": system}]
    for said in ("What", "ASSISTANT:", "assistant"):
        messages += [{"role": "user", "content": said}]
        assert askers.rendered(messages) == askers.tokenized(messages) == askers.reader(messages)
        messages += [{"role": "assistant", "content": "a b"}]


@templates
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    texts=st.lists(st.lists(any_words, min_size=1).map("".join).filter(str.strip), min_size=1, max_size=5),
    family=families,
)
def test_chat_and_page(
    assistant: Any, picture_file: str, template: PromptTemplate, texts: list[str], family: str
) -> None:
    """A picture with the first question, then questions and answers in turn."""
    askers = askers_of(assistant, family, template)
    messages = [
        {"role": "assistant" if number % 2 else "user", "content": [{"type": "text", "text": text}]}
        for number, text in enumerate(texts)
    ]
    if len(messages) % 2 == 0:
        messages.pop()
    messages[0]["content"].insert(0, {"type": "image_url"})
    said = [one["content"][-1]["text"] for one in messages]
    turns = [list(pair) for pair in zip(said[::2], said[1::2], strict=False)]
    trained = askers.trained([*messages, {"role": "assistant", "content": "a b"}])
    asked = askers.reader(messages)
    assert trained[: len(asked)] == asked
    engine = Listener(assistant, [])
    with pytest.raises(Heard):
        list(Page(engine, Limits(), None).answer(Given(picture_file, use_boxes=False), turns, said[-1]))
    session = ChatSession(assistant)
    session.cache = Listener(assistant, said[1::2])
    session.add_picture(picture_file)
    as_heard = {"decode": lambda answer: answer, "finish_reason": lambda _: "stop"}
    with patch.multiple(assistant, **as_heard):
        for question in said[::2]:
            session.ask(question)
    assert engine.heard == [asked] and session.cache.heard[-1] == asked


class Heard(Exception):
    """Nothing is answered on the page."""


class Listener(Preparing):
    """In place of the page's engine and of the chat's cache: keeps what is asked, and knows the answers."""

    def __init__(self, assistant: Any, answers: Sequence[str]) -> None:
        super().__init__(assistant)
        self.answers = iter(answers)
        self.heard: list[list[int]] = []

    def submit(self, prompt: Prompt, sampling: Any) -> None:
        self.heard.append(prompt.input_ids)
        raise Heard

    def generate(self, prompt: Prompt, **_: Any) -> str:
        self.heard.append(prompt.input_ids)
        return next(self.answers, "")


def _answers(messages: Sequence[dict[str, Any]]) -> int:
    """The number of the message behind the last answer to a question."""
    asked = next((n for n, one in enumerate(messages) if one["role"] == "user"), 0)
    return max((n + 1 for n, one in enumerate(messages) if one["role"] == "assistant" and n > asked), default=0)
