"""Turns after the first read only what is new, and answer as if everything had been read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mg_llava.boxes.selection import PictureBoxes
from mg_llava.inference.assistant import Assistant
from mg_llava.inference.prompt_cache import PromptCache, _common
from mg_llava.inference.prompts import as_picture_boxes
from tests.tiny_assistant import randomize, save_picture, tiny_assistant
from tests.tiny_parts import NUM_IMAGE_TOKENS
from xtuner.data.text.templates import Turn

BOXES = as_picture_boxes([[2, 3, 20, 25], [10, 5, 38, 28]])
ASK = "<image>\nIs it red"


@pytest.fixture(scope="module")
def assistant(tmp_path_factory: pytest.TempPathFactory) -> Assistant:
    return randomize(tiny_assistant(tmp_path_factory.mktemp("parts"))[0])


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Image.Image]:
    folder = tmp_path_factory.mktemp("pictures")
    return [Image.open(save_picture(folder / f"{n}.png", seed=n)) for n in range(2)]


@pytest.fixture
def encoded(assistant: Assistant, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of pictures of each call of the low-resolution encoder that had some."""
    counts: list[int] = []
    forward = assistant.model.low_res_encoder.forward

    def spy(pixels: torch.Tensor) -> torch.Tensor:
        counts.append(len(pixels))
        return forward(pixels)

    monkeypatch.setattr(assistant.model.low_res_encoder, "forward", spy)
    return counts


class Talk:
    """A conversation by cache, each answer compared with that of the whole prompt."""

    def __init__(self, assistant: Assistant) -> None:
        self.assistant = assistant
        self.cache = PromptCache(assistant.model)
        self.turns: list[Turn] = []

    def ask(self, words: str, pictures: list[Image.Image], found: list[PictureBoxes | None]) -> str:
        prompt = self.assistant.prepare([*self.turns, Turn(words)], pictures, found)
        answer = self.assistant.decode(self.cache.generate(prompt, **self.assistant.greedy(8)))
        self.turns.append(Turn(words, answer))
        return answer

    def whole(self, pictures: list[Image.Image], found: list[PictureBoxes | None]) -> str:
        prompt = self.assistant.prepare([*self.turns[:-1], Turn(self.turns[-1].input)], pictures, found)
        return self.assistant.generate([prompt], 8)[0]


def test_the_first_turns_picture_is_not_read_again(
    assistant: Assistant, pictures: list[Image.Image], encoded: list[int]
) -> None:
    """The first token of the second turn comes from its own words only: no encoder runs, few tokens are read."""
    talk = Talk(assistant)
    talk.ask(ASK, pictures[:1], [BOXES])
    first = talk.cache.num_read
    assert first > NUM_IMAGE_TOKENS + 2 and encoded == [1]
    answer = talk.ask("what dog", pictures[:1], [BOXES])
    assert encoded == [1]
    # the end of the first answer, eos and bos, and USER: what dog ASSISTANT:
    assert talk.cache.num_read <= 8
    assert answer == talk.whole(pictures[:1], [BOXES])


def test_a_new_picture_is_encoded_alone(assistant: Assistant, pictures: list[Image.Image], encoded: list[int]) -> None:
    talk = Talk(assistant)
    talk.ask(ASK, pictures[:1], [BOXES])
    answer = talk.ask("<image>\nIs it blue", pictures, [BOXES, None])
    assert encoded == [1, 1]
    assert answer == talk.whole(pictures, [BOXES, None])


def test_other_boxes_or_another_picture_are_read_anew(
    assistant: Assistant, pictures: list[Image.Image], encoded: list[int]
) -> None:
    for seen, found in ((pictures[:1], [None]), (pictures[1:], [BOXES])):
        talk = Talk(assistant)
        talk.ask(ASK, pictures[:1], [BOXES])
        encoded.clear()
        answer = talk.ask("what", seen, found)
        assert encoded == [1]
        assert answer == talk.whole(seen, found)


def test_the_same_prompt_again_reads_one_token(assistant: Assistant, pictures: list[Image.Image]) -> None:
    cache = PromptCache(assistant.model)
    prompt = assistant.prepare([Turn(ASK)], pictures[:1], [BOXES])
    first = cache.generate(prompt, **assistant.greedy(5))
    assert cache.generate(prompt, **assistant.greedy(5)) == first and cache.num_read == 1
    cache.reset()
    assert cache.generate(prompt, **assistant.greedy(5)) == first and cache.num_read > 1


def test_streams_the_answer_only(assistant: Assistant, pictures: list[Image.Image]) -> None:
    class Collect:
        def __init__(self) -> None:
            self.ids: list[int] = []
            self.ended = False

        def put(self, value: Any) -> None:
            self.ids += value.flatten().tolist()

        def end(self) -> None:
            self.ended = True

    collect = Collect()
    prompt = assistant.prepare([Turn(ASK)], pictures[:1], [BOXES])
    ids = PromptCache(assistant.model).generate(prompt, streamer=collect, **assistant.greedy(5))
    assert collect.ids == ids and collect.ended


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_common(first: list[int], second: list[int]) -> None:
    count = _common(first, second)
    assert first[:count] == second[:count]
    assert count == min(len(first), len(second)) or first[count] != second[count]


def test_low_resolution_only(tmp_path: Path) -> None:
    """A model of low resolution only caches too."""
    assistant, _ = tiny_assistant(tmp_path, low_res_only=True)
    picture = Image.new("RGB", (30, 20), "red")
    cache = PromptCache(assistant.model)
    prompt = assistant.prepare([Turn(ASK)], [picture], [BOXES])
    answer = assistant.decode(cache.generate(prompt, **assistant.greedy(4)))
    assert answer == assistant.generate([prompt], 4)[0]
