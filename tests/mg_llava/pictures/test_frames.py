"""Frames that are no square: hand-worked places of pictures and boxes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mg_llava.pictures.frames import frame_size, place, sides, size_words
from mg_llava.pictures.preprocess import ImageProcessor
from tests.tiny_encoders import write_statistics
from xtuner.errors import XTunerError


def test_sizes() -> None:
    assert sides(768) == (768, 768) and sides([768, 1152]) == (768, 1152)
    assert frame_size((64, 64)) == 64 and frame_size([64, 128]) == (64, 128)
    assert size_words(64) == "64" and size_words([64, 128]) == "64 x 128"


@pytest.mark.parametrize("size", [0, (64,), (64, 0), (1, 2, 3), (64.0, 32)])
def test_no_size(size: object) -> None:
    with pytest.raises(XTunerError, match="expected the side of the encoders' picture in pixels"):
        sides(size)  # type: ignore[arg-type]


class TestPlaces:
    """Into a frame 60 high and 120 wide."""

    def test_padded(self) -> None:
        # 100 x 100 fits 60 x 60, in the middle
        placed = place((100, 100), (60, 120), pad=True, crop=True)
        assert placed.target == (30, 0, 90, 60)
        boxes = placed.map_boxes(np.array([[0, 0, 100, 100], [50, 50, 100, 75]], np.float32))
        assert boxes.tolist() == [[30, 0, 90, 60], [60, 30, 90, 45]]

    def test_cut(self) -> None:
        # of 100 x 100 the middle 100 x 50
        placed = place((100, 100), (60, 120), pad=False, crop=True)
        assert placed.source == (0, 25, 100, 75) and placed.target == (0, 0, 120, 60)
        boxes = placed.map_boxes(np.array([[50, 50, 100, 75], [0, 0, 10, 30]], np.float32))
        np.testing.assert_allclose(boxes, [[60, 30, 120, 60], [0, -30, 12, 6]], rtol=1e-6)

    def test_squeezed(self) -> None:
        placed = place((100, 50), (60, 120), pad=False, crop=False)
        assert placed.map_boxes(np.array([[0, 0, 50, 50]], np.float32)).tolist() == [[0, 0, 60, 60]]

    @given(st.integers(1, 5000), st.integers(1, 5000), st.booleans(), st.booleans())
    def test_always_inside(self, width: int, height: int, pad: bool, crop: bool) -> None:
        placed = place((width, height), (48, 96), pad, crop)
        left, top, right, bottom = placed.target
        assert 0 <= left < right <= 96 and 0 <= top < bottom <= 48
        assert 0 <= placed.source[0] < placed.source[2] <= width and 0 <= placed.source[1] < placed.source[3] <= height


class TestProcessor:
    def processor(self, folder: Path, pad: bool = True) -> ImageProcessor:
        write_statistics(folder)
        return ImageProcessor(str(folder), image_size=[48, 96], pad_to_square=pad)  # type: ignore[arg-type]

    def test_padding_is_the_mean(self, tmp_path: Path) -> None:
        pixels, boxes = self.processor(tmp_path)(Image.new("RGB", (50, 50), (9, 9, 9)), np.array([[0, 0, 50, 50]]))
        assert pixels.shape == (3, 48, 96) and pixels.dtype == torch.uint8
        assert pixels[:, 0, 0].tolist() == [127, 63, 191] and pixels[:, 24, 48].tolist() == [9, 9, 9]
        assert boxes.tolist() == [[24, 0, 72, 48]]

    def test_squeezed_fills_the_frame(self, tmp_path: Path) -> None:
        picture = Image.new("RGB", (10, 90), (9, 9, 9))
        pixels, boxes = self.processor(tmp_path, pad=False)(picture, np.array([[0, 0, 5, 9]]))
        assert (pixels == 9).all()
        np.testing.assert_allclose(boxes, [[0, 0, 48, 4.8]], rtol=1e-6)

    def test_extreme_shapes_cost_no_more_than_the_frame(self, tmp_path: Path) -> None:
        for pad in (True, False):
            assert self.processor(tmp_path, pad).pixels(Image.new("RGB", (30_000, 2))).shape == (3, 48, 96)
