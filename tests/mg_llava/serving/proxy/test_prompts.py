"""What is sent to vLLM is as long as the own engine's prompt; what vLLM would read otherwise is refused."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mg_llava.boxes.selection import MOST_BOXES, PictureBoxes
from mg_llava.inference.assistant import Assistant
from mg_llava.inference.messages import read_messages
from mg_llava.inference.prompts import as_picture_boxes
from mg_llava.pictures.pooling import ImageTokens
from mg_llava.serving.proxy.prompts import PromptSender
from mg_llava.serving.vllm.boxed import split_boxes
from tests.mg_llava.serving.conftest import noise
from xtuner.errors import XTunerError

PICTURE = {"type": "image_url", "image_url": {"url": "x"}}
BOXES = {"boxes": [[2, 3, 20, 25], [10.25, 5, 38, 28.1]], "labels": ["dog", "cat"], "scores": [0.9, 0.4]}
HISTORY = [
    {"role": "system", "content": "red"},
    {
        "role": "user",
        "content": [{"type": "text", "text": "Is it"}, PICTURE, PICTURE, {"type": "text", "text": "blue"}],
    },
    {"role": "assistant", "content": "no"},
    {"role": "user", "content": "what"},
]


@pytest.fixture(scope="module")
def sender(exported: Path) -> PromptSender:
    return PromptSender(exported)


def read(messages: list[Any], *boxes: Any, continues: bool = False) -> tuple[Any, list[bytes]]:
    """The conversation with a picture for each of `boxes`, and the pictures' files."""
    pictures = iter([(noise(number), as_picture_boxes(found)) for number, found in enumerate(boxes)])
    asked = read_messages(messages, lambda _: next(pictures), continues)
    files = []
    for picture in asked.pictures:
        stream = io.BytesIO()
        picture.save(stream, "PNG")
        files.append(stream.getvalue())
    return asked, files


@pytest.mark.parametrize(
    ("messages", "boxes", "continues"),
    [
        ([{"role": "user", "content": "what"}], [], False),
        ([{"role": "user", "content": [PICTURE, {"type": "text", "text": "Is it red"}]}], [BOXES], False),
        (HISTORY, [None, BOXES], False),
        (HISTORY, [BOXES, {"boxes": []}], False),
        ([*HISTORY, {"role": "assistant", "content": "A B"}], [BOXES, None], True),
    ],
)
def test_as_long_as_the_own_prompt(
    assistant: Assistant, sender: PromptSender, messages: list[Any], boxes: list[Any], continues: bool
) -> None:
    asked, files = read(messages, *boxes, continues=continues)
    own = assistant.prepare(asked.turns, asked.pictures, asked.found, asked.answer_start)
    sent = sender.prepare(asked, files)
    used = sent.size.num_tokens(sender.processor.image_tokens)
    assert used == own.num_tokens(ImageTokens(4, 4)) and sent.size.objects == sum(map(len, own.boxes))
    assert sent.continues == continues and [one["role"] for one in sent.messages] == [one["role"] for one in messages]


def test_files_and_boxes_go_as_they_came(sender: PromptSender) -> None:
    asked, files = read(HISTORY, BOXES, None)
    parts = [part for part in sender.prepare(asked, files).messages[1]["content"] if part["type"] == "image_url"]
    (first, found), (second, none) = (split_boxes(part["image_url"]["url"]) for part in parts)
    assert [base64.b64decode(url.partition(",")[2]) for url in (first, second)] == files and none is None
    assert found is not None and np.array_equal(found.boxes, asked.found[0].boxes)
    assert found.labels == ("dog", "cat") and found.scores.tolist() == asked.found[0].scores.tolist()


@pytest.mark.parametrize("words", ["</s>", "a <image> b", "<s>"])
def test_special_tokens_in_a_text(sender: PromptSender, words: str) -> None:
    asked, files = read([{"role": "user", "content": words}])
    with pytest.raises(XTunerError, match="holds a special token.*--backend own"):
        sender.prepare(asked, files)


def test_too_many_boxes(sender: PromptSender) -> None:
    count = MOST_BOXES + 1
    many = PictureBoxes(np.tile(np.float32([1, 2, 9, 9]), (count, 1)), ("a",) * count, np.ones(count, np.float32))
    asked, files = read([{"role": "user", "content": [PICTURE]}], many)
    with pytest.raises(XTunerError, match="10,001"):
        sender.prepare(asked, files)


def test_no_exported_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(XTunerError, match="is not an exported mg_llava model"):
        PromptSender(tmp_path)
