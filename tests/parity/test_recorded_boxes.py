"""Boxes from the picture to the 768 frame against what the original implementation recorded (33 cases)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mg_llava.boxes.selection import BoxSelection, PictureBoxes, nms_per_class, pad_boxes
from mg_llava.pictures.preprocess import ImageProcessor
from tests.parity.encoder_folders import clip_folder, siglip_folder

CASES: list[dict[str, Any]] = json.loads((Path(__file__).parent / "data" / "c_boxes.json").read_text())["cases"]

# the original's faults that these cases touch, see `corrected`
SHIFTED = {"size_47x47", "size_294x254"}
PHANTOM = {"empty", "all_outside"}
CUT_WITHOUT_AREA = {
    "nopad_640x480": [0, 245, 66, 245],
    "nopad_333x500": [385, 378, 385, 768],
    "nopad_1234x567": [546, 540, 768, 540],
}


def given(case: dict[str, Any]) -> PictureBoxes:
    boxes = np.array(case["boxes"], np.float32).reshape(-1, 4)
    return PictureBoxes(boxes, tuple(case["labels"]), np.array(case["scores"], np.float32))


def ours(case: dict[str, Any], training: bool, tmp_path: Path) -> PictureBoxes:
    folder = siglip_folder(tmp_path) if case["processor"] == "siglip384" else clip_folder(tmp_path)
    processor = ImageProcessor(str(folder), case["image_size_aux"], case["pad_image_to_square"])
    select = BoxSelection(case["iou_threshold"], case["limit_num"], case["limit_mode"])
    chosen = select(*given(case), case["n_input_ids"], case["max_length"], training)
    mapped, kept = processor.map_boxes(chosen.boxes, (case["width"], case["height"]))
    return chosen.take(kept)._replace(boxes=mapped)


def corrected(case: dict[str, Any], recorded: dict[str, Any]) -> tuple[np.ndarray, list[str]]:
    """What the original recorded, its faults undone."""
    boxes = np.array(recorded["gt_boxes"], np.float32).reshape(-1, 4)
    labels = list(recorded["gt_labels"])
    if case["name"] in PHANTOM:
        # one box [0, 0, 0, 0] where there is none
        assert boxes.tolist() == [[0, 0, 0, 0]] and not labels
        return boxes[:0], labels
    if case["name"] in CUT_WITHOUT_AREA:
        # left at a crop edge without an area
        (index,) = np.flatnonzero((boxes == CUT_WITHOUT_AREA[case["name"]]).all(axis=1))
        return np.delete(boxes, index, axis=0), labels[:index] + labels[index + 1 :]
    return boxes, labels


def test_there_are_33_cases() -> None:
    assert len(CASES) == 33
    assert SHIFTED | PHANTOM | CUT_WITHOUT_AREA.keys() <= {case["name"] for case in CASES}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_padding_and_suppression(case: dict[str, Any]) -> None:
    found = given(case)
    padded = found.boxes
    if case["pad_image_to_square"]:
        padded = pad_boxes(found.boxes, case["width"], case["height"])
        after_padding = np.array(case["after_padding"], np.float32).reshape(-1, 4)
        np.testing.assert_allclose(padded, after_padding, rtol=1e-6)  # both are float32; worst case 1 ulp
    kept = nms_per_class(padded, found.labels, found.scores, case["iou_threshold"])
    assert found.scores[kept].tolist() == case["after_nms"]["scores"]
    assert [found.labels[index] for index in kept] == case["after_nms"]["labels"]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_chosen_boxes_in_the_model_frame(case: dict[str, Any], training: bool, tmp_path: Path) -> None:
    found = ours(case, training, tmp_path)
    boxes, labels = corrected(case, case["train" if training else "eval"])
    assert list(found.labels) == labels
    if case["name"] in SHIFTED:
        # the original resized to 767 pixels and moved everything by one to crop 768 out of it
        np.testing.assert_array_equal(np.clip(found.boxes + 1, 0, 768), boxes)
    else:
        # equal to the last bit in all other cases
        np.testing.assert_array_equal(found.boxes, boxes)
