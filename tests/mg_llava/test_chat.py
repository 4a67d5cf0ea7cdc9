"""Conversations: history, pictures, boxes, streaming."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mg_llava.assistant import Assistant
from mg_llava.boxes import PictureBoxes
from mg_llava.chat import ChatSession, draw_boxes, read_boxes
from tests.tiny_assistant import box_record, save_picture, tiny_assistant
from xtuner.data.templates import Turn
from xtuner.errors import XTunerError


@pytest.fixture(scope="module")
def assistant(tmp_path_factory: pytest.TempPathFactory) -> Assistant:
    return tiny_assistant(tmp_path_factory.mktemp("parts"))[0]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    return save_picture(tmp_path / "images" / "a.png")


@pytest.fixture
def box_file(tmp_path: Path) -> str:
    path = tmp_path / "boxes.json"
    path.write_text(
        json.dumps(
            [box_record("images/a.png"), {**box_record("images/b.png"), "boxes": [], "labels": [], "scores": []}]
        )
    )
    return str(path)


class TestHistory:
    def test_turns_and_pictures_are_kept(
        self, assistant: Assistant, picture: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[tuple[list[Turn], int]] = []
        prepare = assistant.prepare

        def spy(turns: list[Turn], pictures: Any, found: Any) -> Any:
            asked.append((list(turns), len(pictures)))
            return prepare(turns, pictures, found)

        monkeypatch.setattr(assistant, "prepare", spy)
        session = ChatSession(assistant)
        session.add_picture(str(picture))
        first = session.ask("Is it red", max_new_tokens=4)
        session.ask("what", max_new_tokens=4)
        session.add_picture(str(picture))
        session.add_picture(str(picture))
        session.ask("Is it blue", max_new_tokens=4)
        assert asked[0] == ([Turn("<image>\nIs it red")], 1)
        assert asked[1] == ([Turn("<image>\nIs it red", first), Turn("what")], 1)
        assert asked[2][0][2] == Turn("<image>\n<image>\nIs it blue") and asked[2][1] == 3
        session.reset()
        session.ask("what", max_new_tokens=4)
        assert asked[3] == ([Turn("what")], 0)

    def test_an_interrupted_question_is_forgotten(
        self, assistant: Assistant, picture: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        session = ChatSession(assistant)
        session.add_picture(str(picture))

        def interrupt(*_: Any) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(assistant, "generate", interrupt)
            with pytest.raises(KeyboardInterrupt):
                session.ask("what")
        answer = session.ask("what", max_new_tokens=4)
        fresh = ChatSession(assistant)
        fresh.add_picture(str(picture))
        assert fresh.ask("what", max_new_tokens=4) == answer

    @pytest.mark.parametrize(("text", "message"), [("  ", "empty"), ("a <image> b", "stands for a picture")])
    def test_bad_questions(self, assistant: Assistant, text: str, message: str) -> None:
        with pytest.raises(XTunerError, match=message):
            ChatSession(assistant).ask(text)


def test_streamed_pieces_are_the_answer(assistant: Assistant, picture: Path) -> None:
    session, pieces = ChatSession(assistant), []
    session.add_picture(str(picture))
    answer = session.ask("Is it red", max_new_tokens=6, on_text=pieces.append)
    assert answer and "".join(pieces).strip() == answer


class TestBoxes:
    def test_found_by_the_tail_of_the_path(self, picture: Path, box_file: str, tmp_path: Path) -> None:
        assert len(read_boxes(box_file, str(picture)).boxes) == 2
        with pytest.raises(XTunerError, match="2 records and none of '.*c.png'"):
            read_boxes(box_file, str(tmp_path / "images" / "c.png"))

    def test_the_only_record_fits_every_picture(self, picture: Path, tmp_path: Path) -> None:
        path = tmp_path / "one.json"
        path.write_text(json.dumps([box_record("elsewhere.png")]))
        assert len(read_boxes(str(path), str(picture)).boxes) == 2

    def test_boxes_change_what_the_model_sees(self, assistant: Assistant, picture: Path, box_file: str) -> None:
        session = ChatSession(assistant)
        assert session.add_picture(str(picture), box_file) == 2
        assert session.describe() == {"images": [str(picture)], "boxes": [2]}

    def test_draw(self, assistant: Assistant, picture: Path, box_file: str, tmp_path: Path) -> None:
        session = ChatSession(assistant)
        with pytest.raises(XTunerError, match="no picture to draw"):
            session.draw(tmp_path / "out.png")
        session.add_picture(str(picture), box_file)
        session.draw(tmp_path / "out.png")
        drawn = Image.open(tmp_path / "out.png")
        assert drawn.width % Image.open(picture).width == 0 and max(drawn.size) >= 640
        with pytest.raises(XTunerError, match="cannot be saved as .*Give a path that ends in .png"):
            session.draw(tmp_path / "out.nothing")

    def test_a_box_stands_where_it_is_said_to(self) -> None:
        """An 800 x 600 picture is not enlarged: the rectangle's left edge lies at x = 300, from y = 200 to 400."""
        found = PictureBoxes(np.array([[300, 200, 500, 400]], np.float32), ("a",), np.ones(1, np.float32))
        blank = Image.new("RGB", (800, 600))
        pixels = np.asarray(draw_boxes(blank, found)).astype(bool).any(2)
        assert pixels[200:401, 300].all() and pixels[200, 300:501].all()
        assert not pixels[205:396, 305:496].any() and not pixels[405:].any()
        assert blank.getbbox() is None

    def test_small_pictures_are_enlarged_with_their_boxes(self) -> None:
        found = PictureBoxes(np.array([[10, 20, 30, 40]], np.float32), ("a",), np.ones(1, np.float32))
        drawn = draw_boxes(Image.new("RGB", (64, 64)), found)
        assert drawn.size == (640, 640)
        assert np.asarray(drawn).any(2)[200:400, 100].all()

    def test_inverted_boxes_do_not_stop_the_drawing(self) -> None:
        boxes = np.array([[5, 5, 2, 2], [-9, -9, 99, 99]], np.float32)
        draw_boxes(Image.new("RGB", (8, 8)), PictureBoxes(boxes, ("a", "b"), np.ones(2, np.float32)))


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n123"])
def test_not_a_picture(assistant: Assistant, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(XTunerError, match="does not decode"):
        ChatSession(assistant).add_picture(str(tmp_path / "a.png"))
