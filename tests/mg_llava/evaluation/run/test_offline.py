"""Another engine in this process: asked as the model is, its answers read as the model's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from mg_llava.evaluation import EvaluationRunner
from mg_llava.inference.assistant import Assistant, collate_prompts
from mg_llava.inference.endings import Endings
from mg_llava.inference.generation import Draws
from mg_llava.inference.prompts import Prompt
from tests.mg_llava.evaluation.world import FACTS, bench, make_world, runner
from tests.tiny_assistant import randomize, tiny_assistant
from xtuner.errors import XTunerError


class OneByOne:
    """An engine that asks the model prompt by prompt and gives ids beyond the end, as some engines do."""

    def __init__(self, assistant: Assistant) -> None:
        self.assistant = assistant
        self.tokenizer = assistant.tokenizer
        self.image_processor = assistant.image_processor
        self.end_ids = assistant.model.end_ids
        self.drawn: list[Draws | None] = []
        self.most_tokens = 10**6
        self.lots = 0
        self.fails_after = 10**6

    def facts(self) -> dict[str, Any]:
        return {"one": "by one"}

    def answer(
        self, prompts: Sequence[Prompt], draws: Sequence[Draws | None], endings: Endings, max_new_tokens: int
    ) -> list[list[int] | str]:
        self.lots += 1
        if self.lots > self.fails_after:
            raise XTunerError("the engine is gone.")
        self.drawn += draws
        return [self._one(prompt, endings, max_new_tokens) for prompt in prompts]

    def _one(self, prompt: Prompt, endings: Endings, max_new_tokens: int) -> list[int] | str:
        if len(prompt.input_ids) > self.most_tokens:
            return f"the prompt has {len(prompt.input_ids)} tokens."
        batch = collate_prompts([prompt], pad_id=0)
        config = endings.generation_config(max_new_tokens)
        ids: list[int] = self.assistant.model.generate(**batch, generation_config=config)[0].tolist()
        return [*ids, endings.stop_ids()[0], 7]


@pytest.fixture(scope="module")
def assistant(tmp_path_factory: pytest.TempPathFactory) -> Assistant:
    return randomize(tiny_assistant(tmp_path_factory.mktemp("parts"))[0])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def engine(assistant: Assistant) -> OneByOne:
    return OneByOne(assistant)


def offline(engine: OneByOne) -> EvaluationRunner:
    # its own tokenizer and image processor are used: the config's would need files that a folder does without
    return EvaluationRunner({}, {}, "vicuna", engine=engine, boxes=engine.assistant.boxes)


def lines(folder: Path) -> str:
    return (folder / "predictions.jsonl").read_text(encoding="utf-8")


def test_predictions_are_the_model_s(assistant: Assistant, engine: OneByOne, world: Path, tmp_path: Path) -> None:
    local = runner(assistant).run(bench(world), tmp_path / "local", FACTS)
    found = offline(engine).run(bench(world), tmp_path / "engine", FACTS)
    assert lines(tmp_path / "engine") == lines(tmp_path / "local")
    same = ("overall", "groups", "uncertainty", "prompts_sha256", "prompt_template", "num_without_boxes")
    assert {name: found[name] for name in same} == {name: local[name] for name in same}
    assert found["generation"]["used"] == local["generation"]["used"] and found["backend"] == {"one": "by one"}
    assert set(engine.drawn) == {None}


def test_answers_of_another_engine_are_not_taken_up(
    assistant: Assistant, engine: OneByOne, world: Path, tmp_path: Path
) -> None:
    runner(assistant).run(bench(world), tmp_path, FACTS)
    offline(engine).run(bench(world), tmp_path, FACTS)
    assert (tmp_path / "predictions.previous.jsonl").exists() and engine.lots == 1


def test_what_the_engine_cannot_ask_is_that_question_s_error(engine: OneByOne, world: Path, tmp_path: Path) -> None:
    engine.most_tokens = 12
    metrics = offline(engine).run(bench(world), tmp_path, FACTS)
    rows = [json.loads(line) for line in lines(tmp_path).splitlines()]
    failed = [row for row in rows if "error" in row]
    assert metrics["num_failed"] == len(failed) == 1 and failed[0]["hit"] == 0.0
    assert failed[0]["id"] == "q2" and "tokens." in failed[0]["error"]


def test_an_absent_picture_is_that_question_s_error(engine: OneByOne, tmp_path: Path) -> None:
    folder = make_world(tmp_path / "world")
    (folder / "images" / "1.png").unlink()
    assert offline(engine).run(bench(folder), tmp_path / "out", FACTS)["num_failed"] == 1


def test_what_was_answered_before_it_ended_is_kept(
    engine: OneByOne, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mg_llava.evaluation.run.offline._TOGETHER", 3)
    offline(engine).run(bench(world), tmp_path / "whole", FACTS)
    engine.lots, engine.fails_after = 0, 1
    with pytest.raises(XTunerError, match="the engine is gone. Its answers so far are kept"):
        offline(engine).run(bench(world), tmp_path / "cut", FACTS)
    assert len(lines(tmp_path / "cut").splitlines()) == 3
    engine.lots, engine.fails_after = 0, 2
    offline(engine).run(bench(world), tmp_path / "cut", FACTS)
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole") and engine.lots == 2


def test_stops_between_lots(engine: OneByOne, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mg_llava.evaluation.run.offline._TOGETHER", 3)
    assert offline(engine).run(bench(world), tmp_path, FACTS, should_stop=lambda: True) == {}
    assert len(lines(tmp_path).splitlines()) == 3


def test_seeds_are_each_question_s_own(engine: OneByOne, world: Path, tmp_path: Path) -> None:
    asking = offline(engine)
    asking.sample(5, 0.8, 0.7)
    asking.run(bench(world), tmp_path / "a", FACTS)
    first = list(engine.drawn)
    assert len({one.seed for one in first if one}) == 7
    assert {(one.temperature, one.top_p) for one in first if one} == {(0.8, 0.7)}
    asking.run(bench(world), tmp_path / "b", FACTS, limit=2)
    assert engine.drawn[7:] == first[:2]


def test_there_is_no_assistant(engine: OneByOne) -> None:
    with pytest.raises(XTunerError, match="another engine is asked"):
        _ = offline(engine).assistant


def test_boxes_reach_the_engine(engine: OneByOne, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[torch.Tensor]] = []
    answer = engine.answer

    def watched(prompts: Sequence[Prompt], *arguments: Any) -> list[list[int] | str]:
        seen.extend(prompt.boxes for prompt in prompts)
        return answer(prompts, *arguments)

    monkeypatch.setattr(engine, "answer", watched)
    offline(engine).run(bench(world), tmp_path, FACTS)
    counts = [[len(boxes) for boxes in one] for one in seen]
    assert counts == [[2], [0], [2], [2], [], [2], [2]]
