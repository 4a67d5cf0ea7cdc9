"""What the page's buttons do, without a browser."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mg_llava.inference.assistant import Assistant
from mg_llava.serving.generation.batch_engine import BatchEngine
from mg_llava.serving.generation.tickets import Place
from mg_llava.serving.requests.chat import RequestReader
from mg_llava.serving.requests.detecting import SharedDetector
from tests.clips import write_clip
from tests.mg_llava.serving.conftest import endless, found_cup
from tests.mg_llava.serving.page.visiting import LIMITS
from xtuner.errors import XTunerError

pytest.importorskip("fastapi", reason="fastapi is not installed: pip install '.[serve]'")
from mg_llava.serving.page import Page  # noqa: E402
from mg_llava.serving.page.actions import Given, Turns  # noqa: E402

BOX = "[[2.0, 3.0, 20.0, 25.0]]"


@pytest.fixture
def page(assistant: Assistant, tmp_path: Path) -> Iterator[Page]:
    engine = BatchEngine(assistant)
    yield Page(engine, LIMITS, found_cup, str(tmp_path))
    engine.close()


def last(steps: Iterator[Any]) -> Any:
    *_, end = steps
    return end


class TestButtons:
    def test_boxes_are_found_drawn_and_counted(self, page: Page, picture: str) -> None:
        drawn, note, _ = page.show(Given(picture))
        assert drawn is not None and (drawn["width"], drawn["height"]) == (40, 30) and note == "40 x 30 px, 1 box"
        assert drawn["alt"] == "the picture with 1 box" and drawn["src"].startswith("data:image/jpeg;base64,")
        assert page.show(Given(picture, "[[1, 1, 9, 9], [2, 2, 30, 20]]"))[1] == "40 x 30 px, 2 boxes"
        assert page.show(Given(picture, use_boxes=False))[1] == "40 x 30 px, 0 boxes"
        assert page.show(Given()) == (None, "no picture", [])

    def test_answers_stream_and_go_on(self, page: Page, picture: str) -> None:
        turns, _ = last(page.answer(Given(picture), [], "Is it red"))
        assert turns[0][0] == "Is it red" and turns[0][1]
        turns, _ = last(page.answer(Given(picture), turns, "what"))
        assert len(turns) == 2 and turns[1][1]

    def test_with_and_without_objects(self, page: Page, picture: str) -> None:
        with_objects, without = last(page.compare(Given(picture), "Is it red"))
        expected, _ = last(page.answer(Given(picture, use_boxes=False), [], "Is it red"))
        assert with_objects and without == expected[0][1]

    def test_regions(self, page: Page, picture: str) -> None:
        answer, drawn, rows = page.explain(Given(picture), "Is it red")
        assert answer and drawn is not None and [label for label, _ in rows] == ["cup"]

    def test_boxes_outside_are_said_and_left_out(self, page: Page, picture: str) -> None:
        given = Given(picture, "[[500, 500, 600, 600], [2, 2, 30, 20], [-10, 5, 20, 90]]")
        assert page.show(given)[1] == "40 x 30 px, 2 boxes, left out: 1 box outside"
        _, _, rows = page.explain(given, "Is it red")
        assert {label for label, _ in rows} == {"1", "2"}

    @pytest.mark.parametrize(
        ("path", "typed", "question", "message"),
        [
            (None, "", " ", "the question is empty"),
            ("picture", "[[1, 2", "what", "the boxes are not JSON"),
            ("picture", "[" * 90 + "]" * 90, "what", "the boxes are not JSON: .*nested"),
            ("picture", str([[1, 1, 2, 2]] * 1001), "what", "1,001 boxes, at most 1,000"),
            ("picture", "[[1, NaN, 2, 2]]", "what", "not finite"),
            (None, "", "x" * 200_001, "200,001 characters"),
            ("picture", "[[1, 2]]", "what", "boxes cannot be read"),
            ("bomb", "", "what", "50.0 megapixels"),
            ("empty", "", "what", "0 bytes"),
        ],
    )
    def test_mistakes(
        self, page: Page, picture: str, tmp_path: Path, path: str | None, typed: str, question: str, message: str
    ) -> None:
        Image.new("1", (10_000, 5_000)).save(tmp_path / "bomb.png")
        (tmp_path / "empty.png").touch()
        files = {"picture": picture, "bomb": str(tmp_path / "bomb.png"), "empty": str(tmp_path / "empty.png")}
        with pytest.raises(XTunerError, match=message):
            list(page.answer(Given(files.get(path or ""), typed), [], question))


class TestHowItAnswers:
    def test_a_cut_answer_is_called_cut(self, page: Page, picture: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(page.engine.assistant, "stop_ids", endless(page.engine.assistant))
        _, note = last(page.answer(Given(picture, max_tokens=3), [], "Is it red"))
        assert note.startswith("The answer was cut after 3 tokens")
        monkeypatch.setattr(page.engine.assistant, "stop_ids", lambda: list(range(100_000)))
        _, note = last(page.answer(Given(picture), [], "Is it red"))
        assert note == ""

    def test_temperature(self, page: Page, picture: str) -> None:
        """Greedy answers are one; at 2.0 a tiny random model gives many."""
        answers = {
            heat: {last(page.answer(Given(picture, temperature=heat), [], "what"))[0][0][1] for _ in range(6)}
            for heat in (0.0, 2.0)
        }
        assert len(answers[0.0]) == 1 and len(answers[2.0]) > 1

    @pytest.mark.parametrize(
        ("heat", "most"), [(3.0, None), (-1.0, None), (float("nan"), None), ("hot", None), (0.0, 0), (0.0, 1.5)]
    )
    def test_what_the_endpoint_refuses_the_page_does(self, page: Page, heat: Any, most: Any) -> None:
        with pytest.raises(XTunerError, match="temperature|max_tokens"):
            list(page.answer(Given(temperature=heat, max_tokens=most), [], "what"))

    def test_more_tokens_than_the_server_allows(self, page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(page.engine.assistant, "stop_ids", endless(page.engine.assistant))
        assert "after 6 tokens" in last(page.answer(Given(max_tokens=10_000), [], "what"))[1]

    def test_again_and_edit(self, page: Page, picture: str) -> None:
        given = Given(picture)
        turns: Turns = []
        for question in ("Is it red", "what", "Is it blue"):
            turns, _ = last(page.answer(given, turns, question))
        assert last(page.answer_again(given, turns, -1))[0] == turns
        edited, _ = last(page.answer_again(given, turns, 1, "Is it green"))
        assert edited[0] == turns[0] and [question for question, _ in edited] == ["Is it red", "Is it green"]
        assert edited == last(page.answer(given, turns[:1], "Is it green"))[0]
        for number in (3, -4):
            with pytest.raises(XTunerError, match="no such question"):
                list(page.answer_again(given, turns, number))
        with pytest.raises(XTunerError, match="no such question"):
            list(page.answer_again(given, [], -1))


class TestDrawing:
    @pytest.mark.parametrize("corners", [(2, 3, 20, 25), (20, 25, 2, 3), (20.04, 3, 2, 25)])
    def test_a_drawn_box_is_an_object_token(self, page: Page, picture: str, corners: tuple[float, ...]) -> None:
        """The prompt is the one of the same box typed; its place is worked by hand."""
        typed = page.add_box(Given(picture), corners)
        assert typed == BOX
        prompt, found = page._prompt(Given(picture, typed), [], "what")
        assert found is not None and found.boxes.tolist() == [[2, 3, 20, 25]]
        size = page.engine.assistant.image_processor.image_size
        # 40 x 30 in the middle of a square of 40, 5 rows above; boxes of the model's frame are whole pixels
        expected = (torch.tensor([[2.0, 8.0, 20.0, 30.0]]) / 40 * size).round()
        assert torch.equal(prompt.boxes[0], expected)

    def test_boxes_are_added_to_those_that_are_there(self, page: Page, picture: str) -> None:
        typed = page.add_box(Given(picture, BOX), (1, 1, 5, 5))
        assert json.loads(typed) == [[2, 3, 20, 25], [1, 1, 5, 5]]
        named = json.dumps({"boxes": [[2, 3, 20, 25]], "labels": ["cup"], "scores": [0.5]})
        assert json.loads(page.add_box(Given(picture, named), (1, 1, 5, 5)))["labels"] == ["cup", "1"]

    def test_it_is_cut_at_the_edges(self, page: Page, picture: str) -> None:
        assert json.loads(page.add_box(Given(picture), (-50, -3, 99, 12))) == [[0, 0, 40, 12]]

    @pytest.mark.parametrize(
        ("corners", "message"),
        [
            ((1, 2, 3), "four numbers"),
            ((1, 2, 3, None), "four numbers"),
            ((1, 2, 3, float("nan")), "four numbers"),
            ((1, 2, 3, "9"), "four numbers"),
            ((1, 2, True, 9), "four numbers"),
            ((), "four numbers"),
            ((5, 5, 5, 9), "no area"),
            ((50, 5, 99, 9), "no area"),
        ],
    )
    def test_no_boxes(self, page: Page, picture: str, corners: tuple[Any, ...], message: str) -> None:
        with pytest.raises(XTunerError, match=message):
            page.add_box(Given(picture), corners)
        with pytest.raises(XTunerError, match="no picture"):
            page.add_box(Given(), (1, 2, 3, 4))

    def test_not_more_than_the_server_takes(self, page: Page, picture: str) -> None:
        many = str([[1, 1, 2, 2]] * LIMITS.max_boxes)
        with pytest.raises(XTunerError, match="1,001 boxes, at most 1,000"):
            page.add_box(Given(picture, many), (1, 2, 3, 4))


class TestSaved:
    def test_it_goes_on_as_it_would_have(self, page: Page, picture: str, tmp_path: Path) -> None:
        given = Given(picture, BOX)
        turns, _ = last(page.answer(given, [], "Is it red </s> <image>"))
        file = tmp_path / "chat.json"
        file.write_text(page.save(given, turns))
        loaded = page.load(str(file))
        assert loaded.turns == turns and loaded.typed == BOX and loaded.use_boxes
        assert np.array_equal(np.asarray(Image.open(str(loaded.path))), np.asarray(Image.open(picture)))
        again = Given(loaded.path, loaded.typed, loaded.use_boxes)
        before, after = page._prompt(given, turns, "what")[0], page._prompt(again, loaded.turns, "what")[0]
        assert before.input_ids == after.input_ids and torch.equal(before.boxes[0], after.boxes[0])
        assert torch.equal(before.pixel_values, after.pixel_values)

    def test_without_picture_and_without_boxes(self, page: Page, picture: str, tmp_path: Path) -> None:
        turns = [["Is it red", ""]]
        file = tmp_path / "chat.json"
        file.write_text(page.save(Given(), turns))
        loaded = page.load(str(file))
        assert (loaded.turns, loaded.path, loaded.typed) == (turns, None, "")
        file.write_text(page.save(Given(picture, use_boxes=False), turns))
        assert not page.load(str(file)).use_boxes
        with pytest.raises(XTunerError, match="no answer to save yet"):
            page.save(Given(picture), [])

    def test_pictures_that_the_page_cannot_show(self, page: Page, picture: str, tmp_path: Path) -> None:
        body = json.loads(page.save(Given(picture), [["Is it red", "yes"], ["what", "a"]]))
        body["messages"][2]["content"].insert(0, body["messages"][0]["content"][0])
        (tmp_path / "chat.json").write_text(json.dumps(body))
        with pytest.raises(XTunerError, match="go on with `xtuner chat FOLDER --load FILE`"):
            page.load(str(tmp_path / "chat.json"))


class TestVideos:
    def test_the_frames_that_the_model_is_given_are_shown(self, page: Page, picture: str, video: str) -> None:
        """A video counts instead of the picture that stands beside it."""
        drawn, note, frames = page.show(Given(picture, video=video))
        assert drawn is None and note == "8 frames of 40 x 30 px out of 2.0 s, 8 boxes"
        # of 16 frames at 8 a second, linspace(0, 15, 8) cut to whole numbers
        seconds = ["0.00", "0.25", "0.50", "0.75", "1.00", "1.25", "1.50", "1.88"]
        assert [frame["caption"] for frame in frames] == [f"{second} s" for second in seconds]
        assert frames[-1]["alt"] == "frame 15 of the video, at 1.88 s, with 1 box"
        assert all(frame["src"].startswith("data:image/jpeg;base64,") for frame in frames)
        assert page.show(Given(video=video, use_boxes=False))[1].endswith("2.0 s, 0 boxes")
        assert page.show(Given(video=video, typed=BOX))[1].endswith(
            "8 boxes, your own boxes are for pictures and not used"
        )

    def test_it_is_asked_as_the_endpoint_asks(self, page: Page, picture: str, video: str) -> None:
        given = Given(picture, BOX, video=video)
        prompt, _ = page._prompt(given, [], "what")
        content = base64.b64encode(Path(video).read_bytes()).decode()
        parts = [
            {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{content}"}},
            {"type": "text", "text": "what"},
        ]
        body = json.dumps({"messages": [{"role": "user", "content": parts}]}).encode()
        reader = RequestReader(page.engine, "tiny", LIMITS, SharedDetector(found_cup))
        asked = reader.read(body, Place(float("inf"))).prompt
        assert prompt.input_ids == asked.input_ids and torch.equal(prompt.pixel_values, asked.pixel_values)
        assert len(prompt.boxes) == 8 and all(map(torch.equal, prompt.boxes, asked.boxes))
        turns, _ = last(page.answer(given, [], "Is it red"))
        turns, _ = last(page.answer(given, turns, "what"))
        assert len(turns) == 2 and all(answer for _, answer in turns)
        with_objects, without = last(page.compare(given, "Is it red"))
        assert with_objects and without

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("picture.mp4", "it is a PNG picture"),
            ("empty.mp4", "0 bytes"),
            ("cut.mp4", "damaged or cut off"),
            ("large.mp4", "megapixels"),
        ],
    )
    def test_what_is_no_video(
        self, page: Page, picture: str, video: str, tmp_path: Path, name: str, message: str
    ) -> None:
        path = tmp_path / name
        if name == "large.mp4":
            write_clip(path, count=2, size=(1280, 800))
        else:
            whole = Path(picture if name == "picture.mp4" else video).read_bytes()
            path.write_bytes({"picture.mp4": whole, "empty.mp4": b"", "cut.mp4": whole[:200]}[name])
        for ask in (lambda given: page.show(given), lambda given: list(page.answer(given, [], "what"))):
            with pytest.raises(XTunerError, match=message):
                ask(Given(video=str(path)))

    def test_reading_ends_in_time(self, page: Page, video: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(page, "limits", replace(LIMITS, max_read=-1.0))
        with pytest.raises(XTunerError, match="takes too long to read"):
            page.show(Given(video=video))

    def test_what_videos_are_not_taken_for(self, page: Page, picture: str, video: str) -> None:
        given = Given(picture, video=video)
        with pytest.raises(XTunerError, match="for pictures, not for videos"):
            page.explain(given, "what")
        with pytest.raises(XTunerError, match="a chat about a video cannot be saved"):
            page.save(given, [["what", "a"]])
        with pytest.raises(XTunerError, match="no picture to draw a box on"):
            page.add_box(given, (1, 2, 3, 4))

    def test_an_engine_that_takes_none(self, page: Page, video: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(page.engine, "no_videos", "send pictures.", raising=False)
        for ask in (lambda given: page.show(given), lambda given: list(page.answer(given, [], "what"))):
            with pytest.raises(XTunerError, match="send pictures"):
                ask(Given(video=video))
