"""Frames of videos in the model: the same as pictures, or fewer tokens; alone, in batches and packed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mg_llava.model import MGLLaVA
from mg_llava.pictures.pooling import FramePooling, ImageTokens
from tests.tiny_parts import HIGH_SIZE, tiny_batch, tiny_model
from xtuner.constants import FRAME_TOKEN_INDEX, IMAGE_TOKEN_INDEX
from xtuner.errors import XTunerError

# float32 on a CPU; measured worst 2.4e-7
TOLERANCE = 1e-5
POOLED = {"type": FramePooling, "side": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> MGLLaVA:
    return tiny_model(tmp_path_factory.mktemp("pooled"), frame_pooling=POOLED)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> MGLLaVA:
    return tiny_model(tmp_path_factory.mktemp("whole"))


def with_frames(batch: dict[str, Any], first: int = 3) -> dict[str, Any]:
    """The first pictures of every sample become frames."""
    ids = batch["input_ids"].clone()
    places = ids == IMAGE_TOKEN_INDEX
    ids[places & (places.cumsum(1) <= first)] = FRAME_TOKEN_INDEX
    return {**batch, "input_ids": ids}


def mixture() -> dict[str, Any]:
    """Three frames and a picture; two frames; text alone."""
    return with_frames(tiny_batch((14, 9, 8), (4, 2, 0)))


def logits(model: MGLLaVA, batch: dict[str, Any], pack: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of all tokens that are no padding, one below the other, and the mask."""
    model.data_preprocessor.pack = pack
    prepared = model.data_preprocessor(batch, training=pack)
    model.data_preprocessor.pack = False
    with torch.no_grad():
        found = model(**prepared, mode="logits")
    return found[prepared["attention_mask"]], prepared["attention_mask"]


def alone(batch: dict[str, Any], row: int) -> dict[str, Any]:
    """One sample as a batch."""
    counts = torch.isin(batch["input_ids"], torch.tensor([IMAGE_TOKEN_INDEX, FRAME_TOKEN_INDEX])).sum(1)
    start, count = int(counts[:row].sum()), int(counts[row])
    length = int(batch["attention_mask"][row].sum())
    rows = {key: batch[key][row : row + 1, :length] for key in ("input_ids", "labels", "attention_mask")}
    pixels, boxes = batch["pixel_values"][start : start + count], batch["boxes"][start : start + count]
    return {**rows, "pixel_values": pixels, "boxes": boxes}


class TestLogits:
    def test_a_frame_that_is_not_pooled_is_a_picture(self, whole: MGLLaVA) -> None:
        batch = tiny_batch((12,), (1,))
        picture, _ = logits(whole, batch)
        frame, _ = logits(whole, with_frames(batch))
        assert torch.equal(frame, picture)

    @pytest.mark.parametrize("kind", ["model", "whole"])
    def test_packed_as_padded_and_in_a_batch_as_alone(self, kind: str, request: pytest.FixtureRequest) -> None:
        tested, batch = request.getfixturevalue(kind), mixture()
        padded, mask = logits(tested, batch)
        packed, _ = logits(tested, batch, pack=True)
        assert (packed - padded).abs().max() <= TOLERANCE
        separate = torch.cat([logits(tested, alone(batch, row))[0] for row in range(3)])
        assert (separate - padded).abs().max() <= TOLERANCE
        each = tested.vision.image_tokens
        lengths = [
            each.count(ids[kept].tolist())
            for ids, kept in zip(batch["input_ids"], batch["attention_mask"], strict=True)
        ]
        objects = [sum(len(boxes) for boxes in alone(batch, row)["boxes"]) for row in range(3)]
        assert mask.sum(1).tolist() == [text + boxes for text, boxes in zip(lengths, objects, strict=True)]

    def test_packed_loss_is_the_padded_one(self, model: MGLLaVA) -> None:
        batch = mixture()
        padded = model(**model.data_preprocessor(batch))
        model.data_preprocessor.pack = True
        packed = model(**model.data_preprocessor(batch, training=True))
        model.data_preprocessor.pack = False
        assert packed["num_supervised"] == padded["num_supervised"]
        torch.testing.assert_close(packed["loss_sum"], padded["loss_sum"], rtol=TOLERANCE, atol=0)


class TestTokens:
    def test_frames_are_pooled_and_pictures_whole(self, model: MGLLaVA) -> None:
        batch = mixture()
        prepared = model.data_preprocessor(batch)
        assert prepared["frames"] == [True, True, True, False, True, True]
        assert model.vision.image_tokens == ImageTokens(4, 1)
        with torch.no_grad():
            embeds = model.embed(**{key: prepared[key] for key in _EMBED})
            tokens, _ = model.vision.encode(prepared["high_pixels"], prepared["low_pixels"], prepared["boxes"])
        expected = torch.cat([*(tokens[i].mean(0, keepdim=True) for i in range(3)), tokens[3]])
        # behind the first id: a token of each frame, its boxes; then the picture's four
        places = [1, 1 + 1 + 3, 1 + 2 + 3 + 4, *range(1 + 3 + 3 + 4 + 5, 1 + 3 + 3 + 4 + 5 + 4)]
        torch.testing.assert_close(embeds[0, places], expected, rtol=0, atol=1e-6)

    def test_a_grid_that_two_does_not_divide(self, tmp_path: Path) -> None:
        low = {"type": "mg_llava.model.LowResEncoder", "image_size": 42}
        model = tiny_model(tmp_path / "made", low_res_only=True)
        low["name_or_path"] = str(tmp_path / "made" / "clip")
        model = tiny_model(tmp_path / "made", low_res_only=True, low_res_encoder=low, frame_pooling=POOLED)
        assert model.vision.image_tokens == ImageTokens(9, 4)
        batch = with_frames(tiny_batch((9,), (2,), boxes=0, size=42), first=1)
        found, _ = logits(model, batch)
        assert len(found) == 9 - 2 + 4 + 9

    def test_gradients_come_through_the_mean(self, model: MGLLaVA) -> None:
        model.projector.zero_grad()
        model(**model.data_preprocessor(with_frames(tiny_batch((9,), (1,)))))["loss_sum"].backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in model.projector.parameters())

    def test_fewer_tokens_take_fewer_operations(self, model: MGLLaVA) -> None:
        batch = tiny_batch((9,), (3,), size=HIGH_SIZE)
        assert model.step_flops(with_frames(batch)) < model.step_flops(batch)

    def test_data_that_count_otherwise(self, model: MGLLaVA) -> None:
        batch = {**mixture(), "image_tokens": ImageTokens(4, 4)}
        with pytest.raises(XTunerError, match="count 4 tokens a picture and 4 a frame.* makes 4 and 1: give the model"):
            model.data_preprocessor(batch)

    def test_a_square_larger_than_the_grid(self, tmp_path: Path) -> None:
        with pytest.raises(XTunerError, match=r"frame_pooling\.side=3, but a frame has only 2 x 2"):
            tiny_model(tmp_path, frame_pooling=FramePooling(3))


_EMBED = ("input_ids", "high_pixels", "low_pixels", "boxes", "image_positions", "object_positions", "frames")
