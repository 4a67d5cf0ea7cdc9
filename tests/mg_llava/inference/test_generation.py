"""Answers do not depend on what the language model's folder asks of generation, but for the tokens that end them."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from mg_llava.hf import load_assistant, save_pretrained
from mg_llava.inference.assistant import Assistant
from mg_llava.inference.chat import ChatSession
from mg_llava.inference.generation import Draws, greedy_config
from tests.tiny_assistant import tiny_assistant
from xtuner.data.text.templates import Turn
from xtuner.errors import XTunerError
from xtuner.model.meta import meta_init
from xtuner.registry import build

ENDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
WISHES: dict[str, dict[str, Any]] = {
    "penalties": {"repetition_penalty": 5.0, "no_repeat_ngram_size": 1, "min_new_tokens": 6},
    "beams": {"do_sample": True, "num_beams": 3, "num_return_sequences": 2},
    "stop strings": {"stop_strings": ["e"]},
    "sampling": {"do_sample": True, "temperature": 9.0, "top_p": 0.9, "top_k": 3},
    "suppressed": {"suppress_tokens": list(range(3, 90)), "begin_suppress_tokens": [5], "forced_eos_token_id": 7},
    "lengths": {"min_length": 50, "max_length": 3, "max_time": 1e-9},
    "bad words": {"bad_words_ids": [[token] for token in range(3, 60)], "sequence_bias": [[[100], 50.0]]},
    "output": {"return_dict_in_generate": True, "output_scores": True, "use_cache": False},
    "drafts": {"prompt_lookup_num_tokens": 2, "guidance_scale": 3.0, "renormalize_logits": True},
}


def answers(assistant: Assistant) -> list[Any]:
    """Of evaluation (a batch), and of chat (a cache)."""
    torch.manual_seed(0)
    prompts = [assistant.prepare([Turn(text)]) for text in ("Is it red", "what", "dog cat A B C")]
    session = ChatSession(assistant)
    return [*assistant.generate(prompts, 12), session.ask("Is it red", 12), session.ask("what", 12)]


def ask_with(folder: Path, wishes: dict[str, Any] | None) -> tuple[Assistant, dict[str, Any]]:
    """An assistant whose language model's folder holds these wishes beside the same weights."""
    _, node = tiny_assistant(folder)
    file = folder / "llm" / "generation_config.json"
    file.unlink()
    if wishes is not None:
        file.write_text(json.dumps({**ENDS, **wishes}))
    fresh, _ = tiny_assistant(folder / "parts")
    return Assistant(build(node).eval(), fresh.tokenizer, fresh.image_processor, "vicuna", fresh.boxes), node


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    found = answers(ask_with(tmp_path_factory.mktemp("none"), None)[0])
    assert all(found) and max(len(answer.split()) for answer in found) > 6
    return found


@pytest.mark.parametrize("kind", WISHES)
def test_nothing_of_it_acts(tmp_path: Path, expected: list[Any], kind: str) -> None:
    assistant, node = ask_with(tmp_path, WISHES[kind])
    assert answers(assistant) == expected
    asked = assistant.generation_facts(5)["asked_by_language_model"]
    assert WISHES[kind].keys() & asked.keys() and json.loads(json.dumps(asked))
    save_pretrained(assistant, node, tmp_path / "hf")
    assert answers(load_assistant(tmp_path / "hf")) == expected
    held = json.loads((tmp_path / "hf" / "generation_config.json").read_text())
    assert held["num_beams"] == 1 and held["repetition_penalty"] == 1.0 and "stop_strings" not in held


def test_a_file_that_cannot_be_read(tmp_path: Path, expected: list[Any]) -> None:
    """Transformers trains and loads with it; nothing of it acts."""
    assert answers(ask_with(tmp_path, {"temperature": "warm", "num_beams": 0})[0]) == expected


class TestEnds:
    def test_of_the_folder_act_and_are_named(
        self, tmp_path: Path, expected: list[Any], framework_log: list[logging.LogRecord]
    ) -> None:
        word = expected[0].split()[2]
        plain, _ = ask_with(tmp_path / "plain", None)
        end = plain.tokenizer.convert_tokens_to_ids(word)
        assistant, node = ask_with(tmp_path, {"eos_token_id": [2, end]})
        assert assistant.stop_ids() == sorted({2, end})
        assert answers(assistant)[0] == " ".join(expected[0].split()[:2])
        lines = [record.getMessage() for record in framework_log]
        assert any(f"generation_config.json names {word} ({end}), only template vicuna" in line for line in lines)
        save_pretrained(assistant, node, tmp_path / "hf")
        assert answers(load_assistant(tmp_path / "hf"))[0] == " ".join(expected[0].split()[:2])

    def test_known_without_weights(self, tmp_path: Path) -> None:
        """An export reads shapes only."""
        _, node = ask_with(tmp_path, {"eos_token_id": [2, 9]})
        with meta_init():
            assert build(node).end_ids == (2, 9)

    def test_of_no_file_are_none(self, tmp_path: Path, framework_log: list[logging.LogRecord]) -> None:
        assistant, _ = ask_with(tmp_path, None)
        assert assistant.model.end_ids == () and assistant.model.asked_generation == {}
        assert not [record for record in framework_log if "Answers end" in record.getMessage()]


def test_greedy_config_is_read_back_as_it_was(tmp_path: Path) -> None:
    config = greedy_config(7, [2, 9], 0, 1)
    config.save_pretrained(tmp_path)
    assert type(config).from_pretrained(tmp_path).to_diff_dict() == config.to_diff_dict()
    assert config.eos_token_id == [2, 9] and config.max_new_tokens == 7 and config.do_sample is False


class TestDraws:
    NAMES = ("a", "b")

    @pytest.fixture(scope="class")
    def drawing(self, tmp_path_factory: pytest.TempPathFactory) -> Assistant:
        return tiny_assistant(tmp_path_factory.mktemp("draws"))[0]

    @staticmethod
    def ask(assistant: Assistant, draws: Draws | None, names: tuple[str, ...] = NAMES) -> list[str]:
        prompts = [assistant.prepare([Turn(text)]) for text in ("Is it red", "dog cat A B C")]
        return assistant.generate(prompts, 12, draws=draws, names=names)

    def test_a_seed_and_the_names_decide(self, drawing: Assistant) -> None:
        first = self.ask(drawing, Draws(1, 2.0, 1.0))
        torch.rand(3)  # what else draws has no say
        assert self.ask(drawing, Draws(1, 2.0, 1.0)) == first
        assert self.ask(drawing, Draws(2, 2.0, 1.0)) != first
        assert self.ask(drawing, Draws(1, 2.0, 1.0), ("a", "c")) != first

    def test_a_small_share_is_the_likeliest(self, drawing: Assistant) -> None:
        assert self.ask(drawing, Draws(3, 1.0, 1e-9)) == self.ask(drawing, None)

    def test_other_random_numbers_stay(self, drawing: Assistant) -> None:
        torch.manual_seed(5)
        wanted = torch.rand(2)
        torch.manual_seed(5)
        self.ask(drawing, Draws(1))
        assert torch.equal(torch.rand(2), wanted)

    @pytest.mark.parametrize(
        "values", [(-1, 1.0, 1.0), (1, 0.0, 1.0), (1, 1.0, 0.0), (1, float("nan"), 1.0), (1, 1.0, 2.0)]
    )
    def test_values_out_of_range(self, values: tuple[int, float, float]) -> None:
        with pytest.raises(XTunerError, match="expected a seed of 0 or more"):
            Draws(*values)
