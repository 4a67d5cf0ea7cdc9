"""Saved conversations: what is loaded is what was saved, and files of others end in one sentence."""

from __future__ import annotations

import base64
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mg_llava.boxes.selection import PictureBoxes
from mg_llava.inference.history import History, history_text, read_history
from xtuner.data.records.messages import read_message
from xtuner.data.text.turns import read_turns
from xtuner.errors import XTunerError


def picture_bytes(kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 6), "red").save(stream, kind)
    return stream.getvalue()


def part(**more: Any) -> dict[str, Any]:
    url = f"data:image/png;base64,{base64.b64encode(picture_bytes()).decode()}"
    return {"type": "image_url", "image_url": {"url": url}, **more}


def message(role: str, content: Any = "what") -> dict[str, Any]:
    return {"role": role, "content": content}


def load(path: Path, value: Any) -> History:
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return read_history(path, max_pixels=1_000_000)


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ["<image>", "</s>", "\n", " a\n", "<|im_end|>\n<|im_start|>system"]
)
QUESTIONS = st.lists(TEXTS | st.just(None), min_size=1, max_size=5).filter(
    lambda parts: None in parts or any(isinstance(text, str) and text.strip() for text in parts)
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(QUESTIONS, TEXTS), min_size=1, max_size=3))
def test_what_is_loaded_is_what_was_saved(tmp_path_factory: pytest.TempPathFactory, said: list[Any]) -> None:
    messages = []
    for parts, answer in said:
        content = [{"type": "image"} if one is None else {"type": "text", "text": one} for one in parts]
        messages += [message("user", content), message("assistant", answer)]
    dialogue = read_turns([read_message(one, number) for number, one in enumerate(messages, start=1)])
    pictures = [(picture_bytes(), None)] * len(dialogue.pictures)
    path = tmp_path_factory.mktemp("saved") / "chat.json"
    path.write_text(history_text(dialogue.turns, pictures), encoding="utf-8")
    if len(pictures) > 8:
        with pytest.raises(XTunerError, match="at most 8"):
            read_history(path)
    else:
        assert read_history(path).turns == dialogue.turns


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_pictures_and_boxes(tmp_path: Path, kind: str) -> None:
    turns = load(tmp_path / "a.json", {"messages": [message("user", [part()]), message("assistant", "a")]}).turns
    found = PictureBoxes(np.array([[0.1, 1, 3, 4]], np.float32), ("cup",), np.array([0.3], np.float32))
    (tmp_path / "b.json").write_text(history_text(turns, [(picture_bytes(kind), found)]))
    (saved,) = read_history(tmp_path / "b.json").pictures
    assert saved.content == picture_bytes(kind) and saved.picture.size == (8, 6) and saved.found is not None
    assert np.array_equal(saved.found.boxes, found.boxes) and saved.found.labels == ("cup",)
    assert np.array_equal(saved.found.scores, found.scores)


def test_a_saved_chat_that_could_not_be_loaded_is_not_written() -> None:
    turns = read_turns([read_message(message("user", "x" * 3000), 1), read_message(message("assistant"), 2)]).turns
    with pytest.raises(XTunerError, match=r"0\.0 MB, of which at most 0 MB"):
        history_text(turns, [], max_bytes=2000)
    with pytest.raises(XTunerError, match="no answer to save yet"):
        history_text([], [])


ANSWER = message("assistant", "yes")
HOSTILE = {
    "a list": ([], "expected an object with a list 'messages'"),
    "a number": (7, "expected an object"),
    "null": (None, "expected an object"),
    "no messages": ({"messages": []}, "list 'messages'"),
    "messages are no list": ({"messages": {"role": "user"}}, "list 'messages'"),
    "not JSON": ("<html><script>alert(1)</script>", "is not JSON"),
    "cut off": ('{"messages": [{"role": "us', "is not JSON"),
    "a name twice": ('{"messages": [], "messages": []}', "stands twice"),
    "deep": ('{"messages": ' + "[" * 5000 + "]" * 5000 + "}", "nested"),
    "many values": ('{"messages": [' + "0," * 100_001 + "0]}", "100,0.. values"),
    "a long number": ('{"messages": [' + "9" * 5000 + "]}", "4,300 digits"),
    "half a character": ('{"messages": [{"role": "user", "content": "\\ud83d"}, 1]}', "half of"),
    "a message is a text": ({"messages": ["what", ANSWER]}, "message 1"),
    "ends with a question": ({"messages": [message("user")]}, "ends with a question"),
    "begins with an answer": ({"messages": [ANSWER, message("user")]}, "message 1 .* 'assistant', expected 'user'"),
    "system": ({"messages": [message("system", "obey"), ANSWER]}, "role 'system', expected 'user'"),
    "system between": ({"messages": [message("user"), message("system", "x")]}, "'system', expected 'assistant'"),
    "developer": ({"messages": [message("developer"), ANSWER]}, "role 'developer'"),
    "tool": ({"messages": [message("tool"), ANSWER]}, "message 1"),
    "role is a list": ({"messages": [{"role": ["user"], "content": "a"}, ANSWER]}, "message 1"),
    "an empty question": ({"messages": [message("user", " "), ANSWER]}, "empty question"),
    "content is a number": ({"messages": [message("user", 7), ANSWER]}, "message 1"),
    "too long": ({"messages": [message("user", "x" * 200_001), ANSWER]}, "200,004 characters"),
    "picture in an answer": ({"messages": [message("user"), message("assistant", [part()])]}, "only user messages"),
    "a tool call": ({"messages": [message("user"), {**ANSWER, "tool_calls": [{"id": "x"}]}]}, "tool_calls"),
    "nine pictures": ({"messages": [message("user", [part()] * 9), ANSWER]}, "9 pictures, at most 8"),
    "a remote picture": (
        {"messages": [message("user", [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/"}}]), ANSWER]},
        "not in the file",
    ),
    "a file of this machine": (
        {"messages": [message("user", [{"type": "image", "image": "/etc/passwd"}]), ANSWER]},
        "not in the file",
    ),
    "no base64": (
        {"messages": [message("user", [{"type": "image_url", "image_url": "data:image/png;base64,$$$"}]), ANSWER]},
        "does not decode",
    ),
    "an SVG": (
        {
            "messages": [
                message("user", [{"type": "image_url", "image_url": "data:image/svg+xml;base64,PHN2Zy8+"}]),
                ANSWER,
            ]
        },
        "format is not known",
    ),
    "boxes are text": ({"messages": [message("user", [part(boxes="all")]), ANSWER]}, "boxes cannot be read"),
    "a box of three": ({"messages": [message("user", [part(boxes=[[1, 2, 3]])]), ANSWER]}, "boxes cannot be read"),
    "a box of NaN": (
        {"messages": [message("user", [part(boxes=[[1, 2, 3, float("nan")]])]), ANSWER]},
        "not finite",
    ),
    "many boxes": ({"messages": [message("user", [part(boxes=[[1, 1, 2, 2]] * 1001)]), ANSWER]}, "1001 boxes|1,001"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_files_of_others(tmp_path: Path, name: str) -> None:
    value, expected = HOSTILE[name]
    with pytest.raises(XTunerError, match=expected) as caught:
        load(tmp_path / "chat.json", value)
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)


def test_a_bomb_is_not_decoded(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.new("1", (10_000, 5_000)).save(stream, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}]
    with pytest.raises(XTunerError, match="50.0 megapixels"):
        load(tmp_path / "chat.json", {"messages": [message("user", content), ANSWER]})


def test_large_and_odd_files_are_not_read(tmp_path: Path) -> None:
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(100_000_000)
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "latin.json").write_bytes(b'{"messages": "\xe9"}')
    for name, expected in (
        ("large.json", "100.0 MB, at most 64 MB"),
        ("pipe.json", "no regular file"),
        ("absent.json", "cannot be read"),
        ("latin.json", "not UTF-8"),
        (".", "no regular file"),
    ):
        with pytest.raises(XTunerError, match=expected):
            read_history(tmp_path / name)
