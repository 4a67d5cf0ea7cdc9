"""Boxes of a video's frames: records, lookup by number or time, faults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mg_llava.boxes.store import BoxStore, nearest_frame
from xtuner.errors import ProblemsError


def frame(left: float, **place: Any) -> dict[str, Any]:
    return {**place, "boxes": [[left, 0, left + 4, 4]], "labels": ["cat"], "scores": [0.5]}


def store(folder: Path, *records: Any) -> BoxStore:
    (folder / "boxes.json").write_text(json.dumps(records))
    return BoxStore(folder / "boxes.json")


class TestRecords:
    def test_frames_of_a_video(self, tmp_path: Path) -> None:
        video = {
            "video": "v/a.mp4",
            "width": 32,
            "height": 24,
            "frames": [frame(0, time=0), frame(8, time=1.5, index=12)],
        }
        picture = {"image": "a.png", "boxes": [], "labels": [], "scores": []}
        found = store(tmp_path, picture, video)
        assert len(found) == 3
        records = found.frames_of("v/./a.mp4")
        assert [(record.time, record.frame, record.size) for record in records] == [
            (0, None, (32, 24)),
            (1.5, 12, (32, 24)),
        ]
        assert records[1].found.boxes.tolist() == [[8, 0, 12, 4]]
        assert found.frames_of("a.png") == [] and found.find("v/a.mp4") is None

    def test_an_object_by_videos(self, tmp_path: Path) -> None:
        (tmp_path / "b.json").write_text(json.dumps({"v/a.mp4": {"frames": [frame(0, index=3)], "boxes": None}}))
        assert [record.frame for record in BoxStore(tmp_path / "b.json").frames_of("v/a.mp4")] == [3]

    @pytest.mark.parametrize(
        ("change", "found"),
        [
            ({"video": None}, "has 'frames' but no 'video'"),
            ({"frames": 3}, "'frames' is '3', expected a list"),
            ({"frames": ["x"]}, "frame 1 is a str: expected an object"),
            ({"frames": [frame(0)]}, "frame 1 has neither 'time' nor 'index'"),
            ({"frames": [frame(0, time=0), frame(0, time=-1)]}, "frame 2: 'time' is '-1', expected seconds"),
            ({"frames": [frame(0, index=1.5)]}, "'index' is '1.5', expected the number of a frame"),
            (
                {"frames": [{"time": 0, "boxes": [[1]], "labels": ["a"], "scores": [1]}]},
                "frame 1: 'boxes' has the shape",
            ),
        ],
    )
    def test_malformed(self, tmp_path: Path, change: dict[str, Any], found: str) -> None:
        with pytest.raises(ProblemsError, match=found):
            store(tmp_path, {"video": "a.mp4", "frames": [], **change})


def test_nearest(tmp_path: Path) -> None:
    frames = [frame(0, time=0), frame(8, time=1), frame(16, index=20)]
    records = store(tmp_path, {"video": "a.mp4", "frames": frames}).frames_of("a.mp4")

    def left(number: int, time: float, tolerance: float = 0.25) -> float | None:
        record = nearest_frame(records, number, time, tolerance)
        return None if record is None else float(record.found.boxes[0, 0])

    assert left(0, 0.0) == 0
    assert left(9, 0.9) == 8
    # by its number, whatever the time; and near it, as long as frames last here
    assert left(20, 99.0) == 16
    assert left(21, 2.1) == 16
    assert left(15, 1.5) is None
    assert left(15, 1.5, tolerance=0.5) == 8
