"""Boxes that cannot be pixels of their picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mg_llava.boxes.records import parse_box_record
from mg_llava.boxes.selection import MOST_BOXES, BoxSelection
from mg_llava.boxes.sense import CORNERS, FRACTIONS, INVERTED, LARGER, NO_AREA, OUTSIDE, odd_boxes, refuse_odd
from xtuner.errors import XTunerError


def kinds(boxes: list[list[float]], size: tuple[int, int] | None = (100, 80)) -> dict[str, list[bool]]:
    found = odd_boxes(np.array(boxes, np.float32).reshape(-1, 4), size)
    return {kind: mask.tolist() for kind, mask in found.items() if mask.any()}


def record(**changes: Any) -> dict[str, Any]:
    return {"image": "a.png", "boxes": [[0, 0, 9, 9]], "labels": ["x"], "scores": [1.0], **changes}


class TestKinds:
    def test_good_boxes(self) -> None:
        assert kinds([]) == {}
        assert kinds([[0, 0, 100, 80], [1, 2, 3, 4], [90, 70, 103, 83]]) == {}
        # a single pixel
        assert kinds([[0, 0, 1, 1], [0, 0, 50, 50]]) == {}

    def test_fractions(self) -> None:
        assert kinds([[0.1, 0.2, 0.5, 0.6], [0, 0, 1, 1]]) == {FRACTIONS: [True, True]}
        assert kinds([[0.1, 0.2, 0.5, 0.6], [0, 0, 1, 2]]) == {}

    def test_width_and_height_as_corners(self) -> None:
        assert kinds([[50, 40, 20, 30], [60, 50, 10, 10], [5, 5, 20, 20]]) == {CORNERS: [True] * 3}
        # read so they would reach beyond the picture: just inverted
        assert kinds([[95, 75, 60, 60], [95, 75, 60, 60]]) == {INVERTED: [True, True]}
        assert kinds([[50, 40, 20, 30]]) == {INVERTED: [True]}
        assert kinds([[50, 40, 20, 30], [6, 5, 10, 10]]) == {INVERTED: [True, False]}

    def test_without_area_and_elsewhere(self) -> None:
        assert kinds([[5, 5, 5, 9], [5, 5, 9, 5], [1, 1, 3, 3]]) == {NO_AREA: [True, True, False]}
        assert kinds([[200, 200, 300, 300], [50, 50, 180, 160], [1, 1, 3, 3]]) == {
            OUTSIDE: [True, False, False],
            LARGER: [False, True, False],
        }
        assert kinds([[200, 200, 300, 300]], None) == {}

    def test_values_that_are_not_finite_are_inverted(self) -> None:
        assert kinds([[0, 0, float("nan"), 5], [0, 0, 9, 9]]) == {INVERTED: [True, False]}


class TestRefusal:
    def test_a_majority_is_refused_with_an_example(self) -> None:
        records = [parse_box_record(None, 1, record()), parse_box_record(None, 2, record(boxes=[[0, 0, 0.5, 0.5]]))]
        with pytest.raises(XTunerError) as caught:
            refuse_odd({FRACTIONS: 2}, 3, "boxes.json", records)
        assert "'boxes.json' has 2 boxes within 0 to 1 among 3 (box record number 2 ('a.png'), box number 1" in str(
            caught.value
        )
        refuse_odd({FRACTIONS: 1, NO_AREA: 1}, 2, "boxes.json", records)
        with pytest.raises(XTunerError, match="3 boxes of a larger picture"):
            refuse_odd({LARGER: 2, OUTSIDE: 1}, 5, "boxes.json", records)


class TestRecords:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"boxes": [[0, 0, 1, 1]] * (MOST_BOXES + 1)}, "10,001 boxes, but at most 10,000 are allowed"),
            ({"width": 10**20, "height": 5}, "expected both in whole pixels"),
            ({"image": ["a"]}, "'image' is"),
            ({"boxes": [[0, 0, 10**400, 1]]}, "'boxes' cannot be read"),
            ({"labels": ["\ud83d"]}, "half of a surrogate pair"),
        ],
    )
    def test_what_cannot_be_taken(self, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(XTunerError, match=message):
            parse_box_record(None, 1, record(**changes))

    def test_too_many_boxes_are_refused_by_the_selection(self) -> None:
        number = MOST_BOXES + 1
        boxes = np.tile(np.array([[0, 0, 5, 5]], np.float32), (number, 1))
        with pytest.raises(XTunerError, match="at most 10,000"):
            BoxSelection()(boxes, ["a"] * number, np.ones(number, np.float32))
