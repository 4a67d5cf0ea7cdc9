"""Conversations: history, pictures, boxes, streaming."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mg_llava.boxes.selection import PictureBoxes
from mg_llava.inference.assistant import Assistant
from mg_llava.inference.chat import ChatSession, draw_boxes, read_boxes
from tests.tiny_assistant import box_record, save_picture, tiny_assistant
from xtuner.data.text.templates import Turn
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

        monkeypatch.setattr(Assistant, "prepare", property(lambda self: spy))
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

        first = session.ask("Is it red", max_new_tokens=4)
        layer = assistant.model.llm.model.layers[1]
        forward, calls = layer.forward, []

        def interrupt(*values: Any, **named: Any) -> Any:
            calls.append(1)
            if len(calls) == 3:
                # between two layers, in the middle of an answer: the first one has cached a token more
                raise KeyboardInterrupt
            return forward(*values, **named)

        with monkeypatch.context() as patch:
            patch.setattr(layer, "forward", interrupt)
            with pytest.raises(KeyboardInterrupt):
                session.ask("what")
        assert [turn.output for turn in session.turns] == [first]
        answer = session.ask("what", max_new_tokens=4)
        fresh = ChatSession(assistant)
        fresh.add_picture(str(picture))
        assert fresh.ask("Is it red", max_new_tokens=4) == first
        assert fresh.ask("what", max_new_tokens=4) == answer

    @pytest.mark.parametrize(("text", "message"), [("  ", "empty"), ("a \ud83d b", "half of a surrogate pair")])
    def test_bad_questions(self, assistant: Assistant, text: str, message: str) -> None:
        with pytest.raises(XTunerError, match=message):
            ChatSession(assistant).ask(text)


class TestAgain:
    def start(self, assistant: Assistant, picture: Path, *questions: str) -> ChatSession:
        session = ChatSession(assistant)
        session.add_picture(str(picture))
        for question in questions:
            session.ask(question, max_new_tokens=4)
        return session

    def test_the_same_question_gets_the_same_answer(self, assistant: Assistant, picture: Path) -> None:
        session = self.start(assistant, picture, "Is it red", "what")
        turns = session.turns
        session.ask_again(max_new_tokens=4)
        assert session.turns == turns

    def test_another_question_in_its_place(self, assistant: Assistant, picture: Path) -> None:
        """Later turns and their pictures go; a picture that nobody has asked about stays for the next question."""
        session = self.start(assistant, picture, "Is it red")
        session.add_picture(str(picture))
        session.ask("what", max_new_tokens=4)
        session.add_picture(str(picture))
        session.ask_again(0, "Is it blue", max_new_tokens=4)
        assert session.turns == self.start(assistant, picture, "Is it blue").turns
        assert len(session.describe()["images"]) == 2
        session.ask("what", max_new_tokens=4)
        assert session.turns[1].num_pictures == 1

    def test_interrupted_it_forgets_nothing(self, assistant: Assistant, picture: Path) -> None:
        session = self.start(assistant, picture, "Is it red", "what")
        turns = session.turns

        def interrupt(_: str) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            session.ask_again(0, "Is it blue", max_new_tokens=4, on_text=interrupt)
        assert session.turns == turns

    @pytest.mark.parametrize("number", [2, -3])
    def test_no_such_question(self, assistant: Assistant, picture: Path, number: int) -> None:
        with pytest.raises(XTunerError, match="2 answered questions"):
            self.start(assistant, picture, "Is it red", "what").ask_again(number)


class TestTemperature:
    def test_a_seed_draws_the_same_answers(self, assistant: Assistant) -> None:
        drawn = []
        for seed in (1, 1, 2):
            session = ChatSession(assistant)
            session.set_temperature(2.0, seed)
            session.ask("what", max_new_tokens=8)
            first = session.turns[0].output
            drawn.append((first, session.ask_again(max_new_tokens=8)))
        assert drawn[0] == drawn[1] != drawn[2] and drawn[0][0] != drawn[0][1]
        session.set_temperature(0)
        assert session.ask_again(max_new_tokens=8) == ChatSession(assistant).ask("what", max_new_tokens=8)

    @pytest.mark.parametrize("temperature", [-0.1, 2.1, float("nan"), float("inf")])
    def test_no_temperature(self, assistant: Assistant, temperature: float) -> None:
        with pytest.raises(XTunerError, match="from 0 to 2"):
            ChatSession(assistant).set_temperature(temperature)


class TestSaved:
    def test_it_goes_on_as_it_would_have(
        self, assistant: Assistant, picture: Path, box_file: str, tmp_path: Path
    ) -> None:
        session = ChatSession(assistant)
        session.add_picture(str(picture), box_file)
        session.ask("Is it red </s>", max_new_tokens=4)
        session.add_picture(str(picture))
        session.save(tmp_path / "chat.json")
        loaded = ChatSession(assistant)
        loaded.load(tmp_path / "chat.json")
        assert loaded.turns == session.turns and loaded.describe()["boxes"] == [2]
        loaded.add_picture(str(picture))
        assert loaded.ask("what", max_new_tokens=4) == session.ask("what", max_new_tokens=4)

    def test_what_cannot_be_loaded_changes_nothing(self, assistant: Assistant, picture: Path, tmp_path: Path) -> None:
        session = ChatSession(assistant)
        session.add_picture(str(picture))
        session.ask("Is it red", max_new_tokens=4)
        turns = session.turns
        (tmp_path / "bad.json").write_text("[]")
        with pytest.raises(XTunerError, match="no saved chat"):
            session.load(tmp_path / "bad.json")
        with pytest.raises(XTunerError, match="cannot be saved as"):
            session.save(tmp_path / "absent" / "chat.json")
        assert session.turns == turns and len(session.describe()["images"]) == 1


def test_streamed_pieces_are_the_answer(assistant: Assistant, picture: Path) -> None:
    session, pieces = ChatSession(assistant), []
    session.add_picture(str(picture))
    answer = session.ask("Is it red", max_new_tokens=6, on_text=pieces.append)
    assert answer and "".join(pieces).strip() == answer


class TestPictures:
    def test_a_large_one_is_refused_before_it_is_decoded(self, assistant: Assistant, tmp_path: Path) -> None:
        """50 megapixels in 6 kB."""
        Image.new("1", (10_000, 5_000)).save(tmp_path / "bomb.png")
        with pytest.raises(XTunerError, match="10000 x 5000 = 50.0 megapixels, but at most 40.0"):
            ChatSession(assistant).add_picture(str(tmp_path / "bomb.png"))

    def test_of_an_animation_the_first_frame_is_shown_and_said(self, assistant: Assistant, tmp_path: Path) -> None:
        frames = [Image.new("RGB", (20, 20), color) for color in ("red", "green", "blue")]
        frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
        session = ChatSession(assistant)
        session.add_picture(str(tmp_path / "a.gif"))
        assert session.notes == [f"'{tmp_path / 'a.gif'}' is an animation of 3 frames: the first is shown"]

    def test_an_empty_file(self, assistant: Assistant, tmp_path: Path) -> None:
        (tmp_path / "a.png").touch()
        with pytest.raises(XTunerError, match="empty, 0 bytes"):
            ChatSession(assistant).add_picture(str(tmp_path / "a.png"))

    def test_boxes_outside_are_left_out_and_counted(self, assistant: Assistant, picture: Path, tmp_path: Path) -> None:
        record = {**box_record("a.png"), "boxes": [[2, 3, 20, 25], [500, 500, 600, 600]]}
        (tmp_path / "boxes.json").write_text(json.dumps([record]))
        session = ChatSession(assistant)
        assert session.add_picture(str(picture), str(tmp_path / "boxes.json")) == 1
        assert "1 box outside" in session.notes[0] and "(40 x 30)" in session.notes[0]


class TestContext:
    def test_a_prompt_that_does_not_fit_says_by_how_much(self, assistant: Assistant, picture: Path) -> None:
        session = ChatSession(assistant)
        session.add_picture(str(picture))
        with pytest.raises(XTunerError, match=r"the prompt has 607 tokens .*context is 512: 96 too many"):
            session.ask("what " * 600)
        assert session.turns == ()

    def test_an_answer_ends_where_the_context_does(self, assistant: Assistant, picture: Path) -> None:
        session = ChatSession(assistant)
        session.ask("what " * 505, max_new_tokens=50)
        assert session.cache._cache.get_seq_length() <= 512


class TestBoxes:
    def test_other_boxes_for_a_picture_that_is_shown(self, assistant: Assistant, picture: Path, box_file: str) -> None:
        session = ChatSession(assistant)
        for change in (lambda: session.set_boxes(box_file), session.detect):
            with pytest.raises(XTunerError, match="there is no picture"):
                change()
        session.add_picture(str(picture))
        assert session.set_boxes(box_file) == 2 and session.set_boxes(None) == 0
        with pytest.raises(XTunerError, match="there is no detector"):
            session.detect()

    def test_a_detector_finds_them(self, assistant: Assistant, picture: Path, box_file: str) -> None:
        found = PictureBoxes(np.array([[1, 1, 9, 9]], np.float32), ("cup",), np.ones(1, np.float32))
        session = ChatSession(assistant, detector=lambda pictures: [found] * len(pictures))
        assert session.add_picture(str(picture)) == 1
        assert session.set_boxes(box_file) == 2 and session.detect() == 1

    def test_explain_draws_and_counts_each_box(
        self, assistant: Assistant, picture: Path, box_file: str, tmp_path: Path
    ) -> None:
        session = ChatSession(assistant)
        with pytest.raises(XTunerError, match="no regions"):
            session.explain("what", "red", ())
        session.add_picture(str(picture), box_file)
        answer = session.ask("Is it red", max_new_tokens=3)
        session.ask("what", max_new_tokens=3)
        influence = session.explain("Is it red", answer, ())
        assert influence.frames == () and len(influence.boxes[0]) == 2
        assert [set(row) for row in session.tell_influence(influence)] == [{"label", "weight"}] * 2
        session.draw(tmp_path / "a.png", influence)
        assert (tmp_path / "a.png").stat().st_size > 0

    def test_found_by_the_tail_of_the_path(self, picture: Path, box_file: str, tmp_path: Path) -> None:
        assert len(read_boxes(box_file, str(picture)).boxes) == 2
        with pytest.raises(XTunerError, match="2 records and none of '.*c.png'"):
            read_boxes(box_file, str(tmp_path / "images" / "c.png"))

    def test_the_only_record_fits_every_picture(self, picture: Path, tmp_path: Path) -> None:
        path = tmp_path / "one.json"
        path.write_text(json.dumps([box_record("elsewhere.png")]))
        assert len(read_boxes(str(path), str(picture)).boxes) == 2

    @pytest.mark.parametrize("form", ["lines", "by picture", "by picture alone"])
    def test_every_form_of_box_file(self, form: str, picture: Path, tmp_path: Path) -> None:
        path = tmp_path / "boxes.json"
        first, second = box_record("a/b.png"), box_record("c/d.png")
        if form == "lines":
            path.write_text("".join(json.dumps(record) + "\n" for record in (first, second)))
        elif form == "by picture":
            path.write_text(json.dumps({"a/b.png": first, "c/d.png": second}))
        else:
            for record in (first, second):
                del record["image"]
            path.write_text(json.dumps({"a/b.png": first, "c/d.png": second}))
        assert len(read_boxes(str(path), "/x/c/d.png").boxes) == 2
        with pytest.raises(XTunerError, match="has 2 records and none of"):
            read_boxes(str(path), str(picture))

    @pytest.mark.parametrize("key", ["elsewhere.png", "7"])
    def test_the_only_record_of_an_object_fits_every_picture(self, key: str, picture: Path, tmp_path: Path) -> None:
        path = tmp_path / "one.json"
        record = box_record("elsewhere.png")
        del record["image"]
        path.write_text(json.dumps({key: record}))
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
        with pytest.raises(XTunerError, match="cannot be saved as .*give a path that ends in .png"):
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
