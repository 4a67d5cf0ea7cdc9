"""Pixel values of both resolutions against what the original implementation recorded."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mg_llava.pictures.normalize import PixelNormalizer
from mg_llava.pictures.preprocess import ImageProcessor
from mg_llava.pictures.statistics import read_pixel_statistics
from tests.parity.encoder_folders import CLIP_PREPROCESSOR, clip_folder, siglip_folder

DATA = Path(__file__).parent / "data"
GOLDEN = np.load(DATA / "c_pixels.npz")
CASES: dict[str, dict[str, Any]] = {
    case["name"]: case for case in json.loads((DATA / "c_boxes.json").read_text())["cases"]
}
NAMES = sorted({key.split("/")[0] for key in GOLDEN.files})
# 33 cases share the pictures of six sizes; cases that differ in boxes only have the pixels of these
PICTURES = sorted(path.name for path in (DATA / "c_images").iterdir())


def pixels_of(case: dict[str, Any], tmp_path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    siglip = case["processor"] == "siglip384"
    folder = siglip_folder(tmp_path) if siglip else clip_folder(tmp_path)
    processor = ImageProcessor(str(folder), case["image_size_aux"], case["pad_image_to_square"])
    image = processor.open(DATA / "c_images" / case["image"])
    normalize = PixelNormalizer.of_encoders(read_pixel_statistics(str(folder)), None, published=True)
    high, low = normalize(processor.pixels(image).unsqueeze(0), 384 if siglip else 336)
    return high[0], low[0]


@pytest.mark.parametrize("name", NAMES)
def test_high_resolution_pixels_are_equal_to_the_last_bit(name: str, tmp_path: Path) -> None:
    high, _ = pixels_of(CASES[name], tmp_path)
    golden = {key: GOLDEN[f"{name}/pixel_values_aux/{key}"] for key in ("shape", "sha256", "strided16")}
    assert list(high.shape) == golden["shape"].tolist()
    np.testing.assert_array_equal(high[:, ::16, ::16], golden["strided16"])
    assert hashlib.sha256(high.contiguous().numpy().tobytes()).hexdigest() == str(golden["sha256"][0])


@pytest.mark.parametrize("name", NAMES)
def test_low_resolution_pixels(name: str, tmp_path: Path) -> None:
    _, low = pixels_of(CASES[name], tmp_path)
    golden = {key: GOLDEN[f"{name}/pixel_values/{key}"] for key in ("shape", "strided8", "row_mid")}
    assert list(low.shape) == golden["shape"].tolist()
    # measured worst case 2.4e-7: the bilinear sum differs by its order between thread counts
    np.testing.assert_allclose(low[:, ::8, ::8], golden["strided8"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(low[:, low.shape[1] // 2], golden["row_mid"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("pad", [True, False])
@pytest.mark.parametrize("picture", PICTURES)
def test_transformers_pillow_processor_gives_the_same_pixels(picture: str, pad: bool, tmp_path: Path) -> None:
    """An independent oracle: transformers' own Pillow CLIP processor, on the padded picture."""
    transformers = pytest.importorskip("transformers", minversion="5.0")
    processor = ImageProcessor(str(clip_folder(tmp_path)), 768, pad)
    image = processor.open(DATA / "c_images" / picture)
    square = image
    if pad:
        # centred by hand: whole pixels, an odd one stands right or below
        side = max(image.size)
        canvas = np.empty((side, side, 3), np.uint8)
        canvas[:] = (122, 116, 104)
        top, left = (side - image.height) // 2, (side - image.width) // 2
        canvas[top : top + image.height, left : left + image.width] = np.asarray(image)
        square = Image.fromarray(canvas)
    settings = json.loads(CLIP_PREPROCESSOR.read_text())
    settings.update(size={"shortest_edge": 768}, crop_size={"height": 768, "width": 768})
    oracle = transformers.CLIPImageProcessorPil(**settings)(square, return_tensors="pt")["pixel_values"]
    high, _ = PixelNormalizer()(processor.pixels(image).unsqueeze(0), 336)
    torch.testing.assert_close(high, oracle, rtol=0, atol=0)
