"""Scenes and questions to LLaVA records, and the list of every word of the world."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tools.tiny_world.dice import Dice
from tools.tiny_world.drawing import picture_name
from tools.tiny_world.questions import BalancedAsker, Question, reading_question
from tools.tiny_world.scenes import Scene, caption, make_scene

CAPTION_PROMPTS = ("Describe the picture.", "What do you see?", "Tell me what is there.")
TEXT_ONLY_PERCENT = 8
SINGLE_TURN_PERCENT = 25
_TEXT_STREAM, _ASK_STREAM = 2, 3


def _turns(pairs: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    return [
        {"from": sender, "value": value} for pair in pairs for sender, value in zip(("human", "gpt"), pair, strict=True)
    ]


def pretrain_record(scene: Scene) -> dict[str, Any]:
    """Returns the LLaVA record that asks for the scene's caption."""
    prompt = Dice(*scene.noise_keys, _TEXT_STREAM).choice(CAPTION_PROMPTS)
    turns = _turns([(f"<image>\n{prompt}", caption(scene))])
    return {"id": scene.name, "image": picture_name(scene), "conversations": turns}


def sft_records(scenes: list[Scene], seed: int) -> list[dict[str, Any]]:
    """Returns question-answer records: mostly several turns, some of one turn, a few without a picture."""
    dice = Dice(seed, 0, _ASK_STREAM)
    asker = BalancedAsker(dice)
    records: list[dict[str, Any]] = []
    for scene in scenes:
        pairs = [(question.text, question.answer) for question in asker.ask(scene)]
        if dice.percent(SINGLE_TURN_PERCENT):
            pairs = pairs[:1]
        pairs[0] = (f"<image>\n{pairs[0][0]}", pairs[0][1])
        records.append({"id": scene.name, "image": picture_name(scene), "conversations": _turns(pairs)})
        if dice.percent(TEXT_ONLY_PERCENT):
            question = reading_question(dice)
            turns = _turns([(question.text, question.answer)])
            records.append({"id": f"text_{len(records):05d}", "conversations": turns})
    return records


def test_questions(scenes: list[Scene], seed: int) -> list[dict[str, str]]:
    """Returns the held-out questions: id, image, question, answer, kind."""
    asker = BalancedAsker(Dice(seed, 1, _ASK_STREAM))

    def entry(scene: Scene, number: int, question: Question) -> dict[str, str]:
        return {
            "id": f"{scene.name}-{number}",
            "image": picture_name(scene),
            "question": question.text,
            "answer": question.answer,
            "kind": question.kind,
        }

    return [entry(scene, n, question) for scene in scenes for n, question in enumerate(asker.ask(scene))]


def world_words() -> list[str]:
    """Returns every word that the world's texts use, sorted; 400 fixed scenes use them all."""
    scenes = [make_scene(0, "train", index) for index in range(400)]
    texts = ["USER: ASSISTANT: Is How What Which Where", *CAPTION_PROMPTS]
    for record in (*map(pretrain_record, scenes), *sft_records(scenes, 0)):
        texts += [turn["value"].replace("<image>", "") for turn in record["conversations"]]
    return sorted({word.strip(".,?") for text in texts for word in text.split()})
