"""The weight of a box is the change of the answer's log-probability without it, computed here the long way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mg_llava.boxes.drawing import weight_color
from mg_llava.inference.assistant import Assistant
from mg_llava.inference.explain import explain_answer, explain_boxes
from mg_llava.inference.prompts import Prompt, as_picture_boxes
from mg_llava.videos import read_frames
from tests.clips import write_clip
from tests.tiny_assistant import randomize, save_picture, tiny_assistant
from xtuner.constants import FRAME_TOKEN_INDEX
from xtuner.data.text.templates import Place, Turn
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


class TestVideos:
    """Each frame and each of its boxes, against prompts that lack them."""

    @pytest.fixture(scope="class", params=[1, 2], ids=["whole", "pooled"])
    def asked(self, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Prompt]:
        root = tmp_path_factory.mktemp("clip")
        one = randomize(tiny_assistant(root, frame_side=request.param)[0])
        video = read_frames(write_clip(root / "a.mp4", count=4, size=(40, 30)))
        found = [as_picture_boxes([[1, 1, 9, 9]]), None, as_picture_boxes([[5, 5, 30, 25], [0, 0, 12, 30]]), None]
        turn = Turn((Place.PICTURE, "\n", Place.VIDEO, "\nIs it red"))
        picture = Image.new("RGB", (40, 30), "red")
        return one, one.prepare([turn], [picture], [as_picture_boxes([[2, 2, 9, 9]])], videos=[video.with_boxes(found)])

    def test_frames_and_their_boxes(self, asked: tuple[Any, Prompt]) -> None:
        one, prompt = asked
        answer = "red dog yes"
        whole = log_probability(one, prompt, answer)
        influence = explain_answer(one, prompt, answer)
        assert [len(boxes) for boxes in influence.boxes] == [1, 0, 2, 0] and len(influence.frames) == 4
        place = prompt.input_ids.index(FRAME_TOKEN_INDEX)
        for number, weight in enumerate(influence.frames):
            ids = [*prompt.input_ids[: place + number], *prompt.input_ids[place + number + 1 :]]
            kept = [picture for picture in range(5) if picture != number + 1]
            without = Prompt(ids, prompt.pixel_values[kept], [prompt.boxes[picture] for picture in kept])
            assert weight == pytest.approx(whole - log_probability(one, without, answer), abs=1e-5)
        boxes = [*prompt.boxes[:3], prompt.boxes[3][:1], *prompt.boxes[4:]]
        without = Prompt(prompt.input_ids, prompt.pixel_values, boxes)
        assert influence.boxes[2][1] == pytest.approx(whole - log_probability(one, without, answer), abs=1e-5)
        assert max(map(abs, influence.frames)) > 1e-3

    def test_the_last_picture_is_no_frame(self, assistant: Assistant, tmp_path: Path) -> None:
        video = read_frames(write_clip(tmp_path / "a.mp4", count=2))
        picture, found = Image.new("RGB", (40, 30), "red"), as_picture_boxes([[2, 2, 9, 9]])
        turn = Turn((Place.VIDEO, "\n", Place.PICTURE, "\nwhat"))
        prompt = assistant.prepare([turn], [picture], [found], videos=[video])
        influence = explain_answer(assistant, prompt, "red")
        assert influence.frames == () and influence.boxes == (tuple(explain_boxes(assistant, prompt, "red")),)

    def test_frames_of_a_baseline(self, tmp_path: Path) -> None:
        low, _ = tiny_assistant(tmp_path, low_res_only=True)
        video = read_frames(write_clip(tmp_path / "a.mp4", count=3))
        influence = explain_answer(low, low.prepare([Turn((Place.VIDEO, "\nwhat"))], videos=[video]), "red")
        assert len(influence.frames) == 3 and influence.boxes == ((), (), ())


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
