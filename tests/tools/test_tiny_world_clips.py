"""Clips of the tiny world: order alone tells where a shape went; records, boxes and files that the readers take."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from mg_llava.boxes.records import parse_records
from mg_llava.videos import FrameSampling, read_frames
from tools.tiny_world import make
from tools.tiny_world.clips import (
    EVENTS,
    FRAME_RATE,
    LENGTHS,
    QUARTERS,
    Clip,
    clip_boxes,
    clip_pictures,
    clip_questions,
    clip_record,
    clip_tests,
    make_clip,
)
from tools.tiny_world.parts import file_digest
from tools.tiny_world.questions import majority_baseline

SAMPLING = FrameSampling(num_frames=QUARTERS)
"""As in configs/tiny/tiny_video.py."""


def sampled(clip: Clip) -> list[int]:
    return SAMPLING.choose(np.arange(clip.frames) / FRAME_RATE).numbers


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    return [make_clip(0, "train", index) for index in range(400)]


class TestClips:
    def test_same_for_a_seed_and_different_otherwise(self) -> None:
        assert make_clip(3, "train", 5) == make_clip(3, "train", 5)
        assert make_clip(3, "train", 5).actors != make_clip(4, "train", 5).actors
        assert make_clip(3, "train", 5).actors != make_clip(3, "test", 5).actors

    def test_events_take_turns_in_clips_of_all_lengths(self, clips: list[Clip]) -> None:
        assert [clip.event for clip in clips[:12]] == [*EVENTS, *EVENTS]
        assert {clip.frames for clip in clips} == set(LENGTHS)

    def test_frames_without_their_order_do_not_tell_where_it_went(self, clips: list[Clip]) -> None:
        """What moves stands in all four corners, the rest stays: each path shows the same four frames."""
        paths: dict[str, set[Any]] = {}
        for clip in clips:
            if clip.event != "move":
                continue
            shown = [clip.scene(frame).things for frame in sampled(clip)]
            for number, actor in enumerate(clip.actors):
                boxes = [things[number].box for things in shown]
                if not actor.path:
                    assert set(boxes) == {actor.thing.box}
                    continue
                places = [((x0 + x1) // 2 // 96, (y0 + y1) // 2 // 96) for x0, y0, x1, y1 in boxes]
                assert sorted(places) == [(0, 0), (0, 1), (1, 0), (1, 1)]
                x, y = {"right": (1, 0), "left": (-1, 0), "down": (0, 1), "up": (0, -1)}[actor.direction]
                assert (places[0][0] + x, places[0][1] + y) == places[1]
                paths.setdefault(actor.direction, set()).add((number, *places))
        assert set(paths) == {"right", "left", "down", "up"} and all(len(found) == 4 for found in paths.values())

    def test_things_stay_inside_and_apart(self, clips: list[Clip]) -> None:
        for clip in clips[:40]:
            for frame in range(clip.frames):
                covered = np.zeros((192, 192), int)
                for x0, y0, x1, y1 in (thing.box for thing in clip.scene(frame).things):
                    assert 0 <= x0 < x1 <= 192 and 0 <= y0 < y1 <= 192
                    covered[y0:y1, x0:x1] += 1
                assert covered.max() == 1

    def test_what_happens_happens(self, clips: list[Clip]) -> None:
        for clip in clips:
            first, last = clip.scene(0).things, clip.scene(clip.frames - 1).things
            ((kind, answer),) = [(one.kind, one.answer) for one in clip_questions(clip)][:1]
            if clip.event == "change":
                assert answer == ("no" if first[0].colour == last[0].colour else "yes") and kind == "change"
            elif clip.event == "appear":
                counts = [len(clip.scene(frame).things) for frame in range(clip.frames)]
                assert counts == sorted(counts) and (counts[0], counts[-1]) == (1, 3)
                assert answer == f"{last[2].colour} {last[2].kind}" and kind == "order"


class TestQuestions:
    def test_guessing_does_not_pay(self, clips: list[Clip]) -> None:
        asked = [(one.kind, one.answer) for clip in clips for one in clip_questions(clip)]
        baseline = majority_baseline(asked)
        assert baseline["direction"] < 0.33 and baseline["start"] < 0.33 and baseline["end"] < 0.33
        assert baseline["change"] < 0.6 and baseline["order"] < 0.12

    def test_records(self, clips: list[Clip]) -> None:
        for clip in clips[:12]:
            record = clip_record(clip)
            text = json.dumps(record)
            assert text.count("<video>") == 1 and record["video"] == f"videos/{clip.name}.mp4"
            told = {turn["value"].removeprefix("<video>\n") for turn in record["conversations"]}
            tests = clip_tests(clip)
            assert told == {one[key] for one in tests for key in ("question", "answer")}
            assert len({one["id"] for one in tests}) == len(tests)

    def test_boxes_are_a_record_of_frames(self, clips: list[Clip]) -> None:
        found = things = 0
        for number, clip in enumerate(clips[:40]):
            records = parse_records(None, number, clip_boxes(clip))
            assert [record.frame for record in records] == list(range(clip.frames))
            for frame, record in enumerate(records):
                boxes = np.array([thing.box for thing in clip.scene(frame).things])
                things += len(boxes)
                found += len(record.found.boxes)
                near = np.abs(record.found.boxes[:, None] - boxes[None]).max(axis=2).min(axis=1, initial=99)
                assert (near <= 1.81).all()
        assert 0.9 < found / things < 0.99


class TestMake:
    def make(self, out: Path, clips: int = 8) -> dict[str, float]:
        return make.make_videos(out, 0, clips, Console(file=io.StringIO()))

    def test_files_that_the_readers_take(self, tmp_path: Path) -> None:
        baseline = self.make(tmp_path)
        data = tmp_path / "data"
        train, test = (json.loads((data / name).read_text()) for name in ("videos.json", "videos_test.json"))
        boxes = json.loads((data / "videos_boxes.json").read_text())
        assert len(train) == 8 and {one["kind"] for one in test} == {"direction", "start", "end", "order", "change"}
        assert set(baseline) == {*(one["kind"] for one in test), "overall"}
        files = {path.relative_to(data).as_posix() for path in data.rglob("*.mp4")}
        assert files == {one["video"] for one in (*train, *test)} == {one["video"] for one in boxes}
        for number in range(4):
            clip = make_clip(0, "train", number)
            shown = read_frames(str(data / clip.file), SAMPLING)
            assert [place.number for place in shown.places] == sampled(clip)
            drawn = clip_pictures(clip)
            for picture, place in zip(shown.pictures, shown.places, strict=True):
                difference = np.abs(np.asarray(picture, int) - np.asarray(drawn[place.number], int))
                # colours at half resolution: sharp edges of small shapes are off the most
                assert difference.mean() < 4

    def test_known_bytes_and_what_stood_there_is_replaced(self, tmp_path: Path) -> None:
        """Written down once: any machine must give them. The clips' own bytes are libx264's."""
        self.make(tmp_path, 12)
        assert len(list((tmp_path / "data" / "videos").iterdir())) == 18
        self.make(tmp_path)
        assert len(list((tmp_path / "data" / "videos").iterdir())) == 14
        names = ("videos.json", "videos_boxes.json", "videos_test.json")
        digests = {name: file_digest(tmp_path / "data" / name)[:12] for name in names}
        assert digests == {
            "videos.json": "789c548c731a",
            "videos_boxes.json": "db1d9003c5fc",
            "videos_test.json": "3d8083bd92ba",
        }

    def test_the_command(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
        words = ["make.py", "--out", str(tmp_path / "world"), "--scenes", "4", "--parts", "random", "--clips", "4"]
        monkeypatch.setattr(sys, "argv", [*words, "--videos"])
        make.main()
        assert len(list((tmp_path / "world" / "data" / "videos").iterdir())) == 10
        assert "direction" in capsys.readouterr().err
        monkeypatch.setattr(sys, "argv", [*words[:-1], "0"])
        with pytest.raises(SystemExit):
            make.main()
        assert "--clips 1 or more" in capsys.readouterr().err
