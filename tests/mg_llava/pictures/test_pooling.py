"""Tokens of pictures and frames, counted and joined, on numbers worked by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mg_llava.pictures.pooling import FramePooling, ImageTokens
from mg_llava.pictures.preprocess import ImageProcessor
from tests.tiny_parts import tiny_clip_folder
from xtuner.constants import FRAME_TOKEN_INDEX, IMAGE_TOKEN_INDEX
from xtuner.errors import XTunerError


class TestFramePooling:
    @pytest.mark.parametrize(
        ("side", "grid", "expected"),
        [
            (1, (24, 24), 576),
            (2, (24, 24), 144),
            (2, (27, 27), 196),
            (3, (24, 24), 64),
            (2, (2, 3), 2),
            (2, (5, 2), 3),
        ],
    )
    def test_number_of_tokens_is_that_of_the_result(self, side: int, grid: tuple[int, int], expected: int) -> None:
        pooling = FramePooling(side)
        assert pooling.num_tokens(grid) == expected
        assert pooling(torch.rand(3, grid[0] * grid[1], 5), grid).shape == (3, expected, 5)

    def test_mean_of_each_square(self) -> None:
        grid = torch.tensor([[1.0, 3, 10, 30], [5, 7, 50, 70], [0, 0, 2, 2], [0, 4, 2, 2]])
        tokens = torch.stack([grid.flatten(), -grid.flatten()], dim=1)[None]
        pooled = FramePooling(2)(tokens, (4, 4))
        assert pooled[0, :, 0].tolist() == [4, 40, 1, 2] and torch.equal(pooled[..., 1], -pooled[..., 0])

    def test_smaller_squares_at_the_edges(self) -> None:
        tokens = torch.arange(6.0).view(1, 6, 1)  # 0 1 2 / 3 4 5
        assert FramePooling(2)(tokens, (2, 3)).flatten().tolist() == [2.0, 3.5]
        assert FramePooling(2)(tokens, (3, 2)).flatten().tolist() == [1.5, 4.5]

    def test_half_precision_is_rounded_once(self) -> None:
        tokens = torch.tensor([1.0, 1.0078125, 1.0, 1.0]).view(1, 4, 1).bfloat16()
        pooled = FramePooling(2)(tokens, (2, 2))
        assert pooled.dtype == torch.bfloat16 and pooled.item() == tokens.float().mean().bfloat16().item()

    def test_off_changes_nothing(self) -> None:
        tokens = torch.rand(2, 4, 3)
        assert FramePooling()(tokens, (2, 2)) is tokens

    @pytest.mark.parametrize("side", [0, -2, 1.5, True, "2"])
    def test_no_side(self, side: Any) -> None:
        with pytest.raises(XTunerError, match=r"frame_pooling\.side=.*whole number above zero"):
            FramePooling(side)

    def test_larger_than_the_grid(self) -> None:
        with pytest.raises(XTunerError, match=r"side=3, but a frame has only 4 x 2 image tokens: expected at most 2\."):
            FramePooling(3).num_tokens((4, 2))


class TestImageTokens:
    def test_count(self) -> None:
        ids = [1, IMAGE_TOKEN_INDEX, 5, FRAME_TOKEN_INDEX, FRAME_TOKEN_INDEX, 6]
        assert ImageTokens(576, 144).count(ids) == 3 + 576 + 2 * 144
        assert ImageTokens(4, 4).count([7, 8]) == 2

    def test_words(self) -> None:
        each = ImageTokens(576, 144)
        assert each.words(2, 8) == "2 pictures of 576, 8 frames of 144"
        assert (each.words(0, 1), each.words(0, 0)) == ("1 frame of 144", "0 pictures of 576")

    def test_of_a_processor(self, tmp_path: Any) -> None:
        folder = str(tiny_clip_folder(tmp_path, 42))
        assert ImageProcessor(folder).image_tokens == ImageTokens(9, 9)
        pooled = ImageProcessor(folder, frame_pooling={"type": FramePooling, "side": 2})
        assert pooled.image_tokens == ImageTokens(9, 4) and pooled.num_image_tokens == 9
