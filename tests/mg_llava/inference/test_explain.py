"""The weight of a box is the change of the answer's log-probability without it, computed here the long way."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from mg_llava.boxes.drawing import weight_color
from mg_llava.inference.assistant import Assistant
from mg_llava.inference.explain import explain_boxes
from mg_llava.inference.prompts import Prompt, as_picture_boxes
from tests.tiny_assistant import randomize, save_picture, tiny_assistant
from xtuner.data.text.templates import Turn
from xtuner.errors import XTunerError


@pytest.fixture(scope="module")
def assistant(tmp_path_factory: pytest.TempPathFactory) -> Assistant:
    return randomize(tiny_assistant(tmp_path_factory.mktemp("parts"))[0])


def log_probability(assistant: Assistant, prompt: Prompt, answer: str) -> float:
    ids = assistant.tokenizer(answer, add_special_tokens=False)["input_ids"]
    data = {
        "input_ids": torch.tensor([[*prompt.input_ids, *ids]]),
        "pixel_values": prompt.pixel_values,
        "boxes": prompt.boxes,
    }
    with torch.inference_mode():
        logits = assistant.model(**assistant.model.data_preprocessor(data), mode="logits")[0]
    logs = logits[-len(ids) - 1 : -1].log_softmax(-1)
    return float(logs[range(len(ids)), ids].sum())


def test_equals_prompts_without_each_box(assistant: Assistant, tmp_path: Path) -> None:
    picture = Image.open(save_picture(tmp_path / "a.png"))
    boxes = [[1, 1, 9, 9], [5, 5, 30, 25], [0, 0, 40, 30], [20, 2, 38, 20]]
    turns, answer = [Turn("<image>\n<image>\nIs it red")], "red dog yes"
    prompt = assistant.prepare(turns, [picture, picture], [as_picture_boxes(boxes[:1]), as_picture_boxes(boxes)])
    whole = log_probability(assistant, prompt, answer)
    weights = explain_boxes(assistant, prompt, answer)
    assert len(weights) == 4
    for number, weight in enumerate(weights):
        kept = torch.cat([prompt.boxes[1][:number], prompt.boxes[1][number + 1 :]])
        without = Prompt(prompt.input_ids, prompt.pixel_values, [prompt.boxes[0], kept])
        # 1e-5: batched in another way; the sum has three terms of about 5
        assert weight == pytest.approx(whole - log_probability(assistant, without, answer), abs=1e-5)
    assert max(map(abs, weights)) > 1e-3


def test_nothing_to_explain(assistant: Assistant, tmp_path: Path) -> None:
    prompt = assistant.prepare([Turn("what")])
    assert explain_boxes(assistant, prompt, "red") == []
    with pytest.raises(XTunerError, match="the answer is empty"):
        explain_boxes(assistant, prompt, "")
    low, _ = tiny_assistant(tmp_path, low_res_only=True)
    with pytest.raises(XTunerError, match="no object tokens"):
        explain_boxes(low, prompt, "red")


def test_colours() -> None:
    assert weight_color(2.0, 2.0) == "#ff3c32" and weight_color(-2.0, 2.0) == "#3c78ff"
    assert weight_color(0.0, 2.0) == weight_color(0.0, 0.0) == "#e1e1e1"
