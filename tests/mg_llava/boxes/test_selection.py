"""Box geometry on hand-worked numbers, and suppression and limits against torchvision and simple counting."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import batched_nms

from mg_llava.boxes.selection import (
    BoxSelection,
    clip_boxes,
    drop_lowest,
    limit_boxes,
    nms_per_class,
    no_boxes,
    pad_boxes,
    resize_boxes,
    valid_boxes,
)
from xtuner.errors import XTunerError


def boxes_of(*rows: list[float]) -> np.ndarray:
    return np.array(rows, np.float32).reshape(-1, 4)


@st.composite
def detections(draw: st.DrawFn) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Boxes on whole pixels (also outside a picture), labels, scores without ties."""
    count = draw(st.integers(0, 30))
    corner, extent = st.integers(-20, 60), st.integers(0, 40)
    boxes = []
    for _ in range(count):
        x, y, width, height = draw(st.tuples(corner, corner, extent, extent))
        boxes.append([x, y, x + width, y + height])
    labels = draw(st.lists(st.sampled_from("abc"), min_size=count, max_size=count))
    order = draw(st.permutations(range(count)))
    return boxes_of(*boxes), labels, np.array([(rank + 1) / 64 for rank in order], np.float32)


class TestFrames:
    def test_padding_a_wide_picture_moves_boxes_down(self) -> None:
        # 6x3: one row above, two below (an odd rest falls below)
        assert pad_boxes(boxes_of([0, 0, 6, 3]), 6, 3).tolist() == [[0, 1, 6, 4]]

    def test_padding_a_tall_picture_moves_boxes_right(self) -> None:
        assert pad_boxes(boxes_of([0.5, 1, 2, 3]), 2, 8).tolist() == [[3.5, 1, 5, 3]]

    def test_resizing(self) -> None:
        assert resize_boxes(boxes_of([1, 2, 4, 8]), (4, 8), (8, 4)).tolist() == [[2, 1, 8, 4]]

    def test_clipping(self) -> None:
        boxes = boxes_of(
            [-2, 1, 3, 4],  # reaches over the left edge: cut
            [-2, 1, 0, 4],  # touches the edge from outside: nothing remains
            [20, 20, 30, 30],  # outside
            [-1, 5, 4, 5],  # without height and cut: dropped
            [2, 5, 4, 5],  # without height but inside: the detector's own, stays
            [0, 0, 10, 10],  # the whole frame
        )
        clipped, kept = clip_boxes(boxes, 10, 10)
        assert clipped.tolist() == [[0, 1, 3, 4], [2, 5, 4, 5], [0, 0, 10, 10]]
        assert kept.tolist() == [True, False, False, False, True, True]

    def test_no_boxes_pass_everything(self) -> None:
        empty = no_boxes().boxes
        assert pad_boxes(empty, 3, 5).shape == resize_boxes(empty, (3, 5), (5, 5)).shape == (0, 4)
        assert clip_boxes(empty, 5, 5)[0].shape == (0, 4)

    def test_valid_boxes(self) -> None:
        boxes = boxes_of([0, 0, 1, 1], [1, 1, 1, 1], [2, 0, 1, 1], [0, 2, 1, 1], [0, 0, float("nan"), 1])
        assert valid_boxes(boxes).tolist() == [True, True, False, False, False]

    @given(detections(), st.integers(1, 50), st.integers(1, 50))
    def test_remaining_boxes_lie_inside(self, found: Any, width: int, height: int) -> None:
        clipped, kept = clip_boxes(found[0], width, height)
        assert len(clipped) == kept.sum()
        assert (clipped >= 0).all() and (clipped <= [width, height] * 2).all()
        assert valid_boxes(clipped).all()


class TestSuppression:
    def test_by_hand(self) -> None:
        # 1 overlaps 0 by 8/12 of their union, 2 has another class, 3 only touches
        boxes = boxes_of([0, 0, 10, 1], [2, 0, 12, 1], [0, 0, 10, 1], [10, 0, 20, 1])
        kept = nms_per_class(boxes, ["a", "a", "b", "a"], np.array([0.9, 0.8, 0.7, 0.95], np.float32), 0.2)
        assert kept.tolist() == [3, 0, 2]

    def test_negative_coordinates_never_reach_another_class(self) -> None:
        # moved apart by class number times the largest coordinate (here 0), these two would meet
        boxes = boxes_of([-100, -100, 0, 0], [-100, -100, 0, 0])
        assert len(nms_per_class(boxes, ["a", "b"], np.array([0.9, 0.8], np.float32), 0.2)) == 2

    def test_equal_scores_keep_their_order(self) -> None:
        boxes = boxes_of([0, 0, 1, 1], [5, 5, 6, 6], [9, 9, 10, 10])
        assert nms_per_class(boxes, ["b", "a", "b"], np.full(3, 0.5, np.float32), 0.2).tolist() == [0, 1, 2]

    @given(detections(), st.sampled_from([0.0, 0.2, 0.5, 1.0]))
    def test_equals_torchvision(self, found: Any, threshold: float) -> None:
        boxes, labels, scores = found
        # torchvision moves classes apart by the largest coordinate: only safe without negative ones
        moved = torch.from_numpy(boxes) + 100
        classes = torch.tensor(["abc".index(label) for label in labels], dtype=torch.long)
        oracle = batched_nms(moved, torch.from_numpy(scores), classes, threshold)
        assert nms_per_class(boxes, labels, scores, threshold).tolist() == oracle.tolist()


class TestLimits:
    LABELS = ["a", "b", "a", "a", "c", "b"]

    @pytest.mark.parametrize(
        ("limit_num", "mode", "tight", "expected"),
        [
            (4, "per_image", False, [0, 1, 2, 3]),
            (None, "per_image", False, [0, 1, 2, 3, 4, 5]),
            (6, "per_category", False, [0, 1, 2, 3, 4, 5]),
            # over the limit: five of each class, class by class
            (5, "per_category", False, [0, 2, 3, 1, 5, 4]),
            (6, "per_category", True, [0, 1, 4]),
            (None, "per_category", True, [0, 1, 4]),
        ],
    )
    def test_by_hand(self, limit_num: int | None, mode: Any, tight: bool, expected: list[int]) -> None:
        assert limit_boxes(self.LABELS, limit_num, mode, tight).tolist() == expected

    @pytest.mark.parametrize(("limit_num", "per_class"), [(30, 5), (49, 5), (50, 20), (51, 20)])
    def test_per_category_counts(self, limit_num: int, per_class: int) -> None:
        labels = ["a"] * 60 + ["b"] * 60
        assert len(limit_boxes(labels, limit_num, "per_category", tight=False)) == 2 * per_class

    def test_tight_per_image_keeps_20(self) -> None:
        assert len(limit_boxes(["a"] * 60, 100, "per_image", tight=True)) == 20

    def test_drop_lowest_keeps_the_places(self) -> None:
        scores = np.array([0.1, 0.9, 0.5, 0.7], np.float32)
        assert drop_lowest(scores, 2).tolist() == [1, 3]
        assert drop_lowest(scores, 9).tolist() == [0, 1, 2, 3]
        assert drop_lowest(scores, 0).tolist() == drop_lowest(scores, -3).tolist() == []


class TestSelection:
    @pytest.mark.parametrize(
        ("num_ids", "training", "expected"),
        [(49, True, 30), (50, True, 20), (500, True, 20), (500, False, 30)],
    )
    def test_long_training_texts_keep_few_boxes(self, num_ids: int, training: bool, expected: int) -> None:
        boxes = boxes_of(*[[10 * i, 0, 10 * i + 5, 5] for i in range(30)])
        scores = np.linspace(0.9, 0.1, 30, dtype=np.float32)
        chosen = BoxSelection()(boxes, ["a"] * 30, scores, num_ids, max_length=100, training=training)
        assert len(chosen.labels) == expected

    def test_inverted_boxes_are_left_out(self) -> None:
        chosen = BoxSelection()(boxes_of([5, 0, 1, 5], [0, 0, 5, 5]), ["a", "b"], np.array([0.9, 0.1], np.float32))
        assert chosen.labels == ("b",) and chosen.boxes.tolist() == [[0, 0, 5, 5]]

    @given(detections(), st.sampled_from(["per_image", "per_category"]), st.integers(1, 60))
    def test_chosen_boxes_are_given_ones_and_unique(self, found: Any, mode: Any, limit: int) -> None:
        boxes, labels, scores = found
        chosen = BoxSelection(0.5, limit, mode)(boxes, labels, scores)
        given_rows = {(*box, label, score) for box, label, score in zip(boxes.tolist(), labels, scores, strict=True)}
        rows = [(*b, name, s) for b, name, s in zip(chosen.boxes.tolist(), *chosen[1:], strict=True)]
        assert len(set(rows)) == len(rows) and set(rows) <= given_rows
        if mode == "per_image":
            assert len(rows) <= limit and sorted(chosen.scores, reverse=True) == chosen.scores.tolist()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"limit_mode": "per_pictures"}, "expected one of per_image, per_category"),
            ({"iou_threshold": 2}, "from 0 to 1"),
            ({"limit_num": 0}, "at least 1"),
        ],
    )
    def test_bad_settings(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(XTunerError, match=message):
            BoxSelection(**arguments)
