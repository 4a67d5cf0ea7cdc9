"""Whole samples (ids, labels, pixels, boxes) and a batch against what the original recorded."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mg_llava.boxes.selection import BoxSelection
from mg_llava.data.dataset import MGLLaVADataset
from mg_llava.pictures.normalize import PixelNormalizer
from mg_llava.pictures.preprocess import ImageProcessor
from tests.parity.encoder_folders import clip_folder
from xtuner.data.text.tokenizer import build_tokenizer

DATA = Path(__file__).parent / "data"
GOLDEN = DATA / "d_dataset"
SETTINGS = ("vicuna_1472", "vicuna_100", "phi3_chat_1472")


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("XTUNER_CACHE", str(tmp_path / "cache"))

    def make(template: str, max_length: int) -> MGLLaVADataset:
        return MGLLaVADataset(
            data_path=str(GOLDEN / "data.json"),
            image_folder=str(DATA / "c_images"),
            tokenizer=build_tokenizer(str(GOLDEN / f"tok_{template}")),
            image_processor=ImageProcessor(str(clip_folder(tmp_path)), 768),
            prompt_template=template,
            max_length=max_length,
            box_json_path=str(GOLDEN / "boxes.json"),
            boxes=BoxSelection(limit_mode="per_category"),
        )

    return make


def read(kind: str, setting: str) -> dict[str, Any]:
    return json.loads((GOLDEN / f"{kind}_{setting}.json").read_text())


@pytest.mark.parametrize("setting", SETTINGS)
def test_samples(setting: str, build: Any) -> None:
    text, vision = read("text", setting), read("vision", setting)
    dataset = build(text["template"], text["max_length"])
    normalize = PixelNormalizer()
    assert len(dataset) == len(vision["samples"]) == 15
    for index, (words, golden) in enumerate(zip(text["samples"], vision["samples"], strict=True)):
        sample = dataset[index]
        assert sample["sample_id"] == str(golden["id"])
        assert sample["input_ids"].tolist() == words["input_ids"]
        assert sample["labels"].tolist() == words["labels"]
        has_picture = golden["modal"] == "image"
        assert dataset.modality[index] == has_picture
        objects = sum(len(boxes) for boxes in sample["boxes"])
        # 576 image tokens stand for one id
        assert dataset.lengths[index] == len(words["input_ids"]) + 575 * has_picture + objects
        if not has_picture:
            # the original encodes a black picture with one box for a sample without a picture
            assert sample["pixel_values"].shape == (0, 3, 768, 768) and sample["boxes"] == []
            continue
        high, _ = normalize(sample["pixel_values"], 336)
        digest = hashlib.sha256(high[0].contiguous().numpy().tobytes()).hexdigest()
        assert digest == golden["pixel_values_aux_sha256"]
        # equal to the last bit
        assert sample["boxes"][0].tolist() == golden["gt_boxes"]


def test_a_long_text_keeps_the_best_box_of_each_class(build: Any) -> None:
    ids = [sample["id"] for sample in read("vision", "vicuna_100")["samples"]]
    number = ids.index("long")
    assert [len(build("vicuna", length)[number]["boxes"][0]) for length in (1472, 100)] == [7, 3]


def test_collate(build: Any) -> None:
    dataset = build("vicuna", 1472)
    golden = np.load(GOLDEN / "text_collate_vicuna.npz")
    ids = [sample["id"] for sample in read("vision", "vicuna_1472")["samples"]]
    picked = [dataset[ids.index(name)] for name in ("single", "text_only", "multi", "image_end")]
    batch = dataset.collate_fn(picked)
    np.testing.assert_array_equal(batch["input_ids"], golden["input_ids"])
    np.testing.assert_array_equal(batch["labels"], golden["labels"])
    # the original has no usable mask; the true lengths are recorded
    assert batch["attention_mask"].sum(dim=1).tolist() == golden["lengths"].tolist()
    # three pictures for four samples: the text-only one adds none
    assert batch["pixel_values"].shape == (3, 3, 768, 768) and batch["pixel_values"].dtype == torch.uint8
    assert [len(boxes) for boxes in batch["boxes"]] == [8, 62, 8]
    assert batch["sample_ids"] == ["single", "text_only", "multi", "image_end"]
