"""Two encoders' pixels from one 8-bit picture: whose statistics, and how the low-resolution view is made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mg_llava.model.fusion import ConvGateFusion
from mg_llava.model.objects import ObjectEncoder
from mg_llava.model.vision import VisionSide
from mg_llava.pictures.normalize import PixelNormalizer
from mg_llava.pictures.statistics import CLIP_MEAN, CLIP_STD, PixelStatistics
from tests.tiny_encoders import MEAN, STD, high_folder, low_folder
from xtuner.errors import XTunerError
from xtuner.model.projector import MLPProjector

CLIP = PixelStatistics(CLIP_MEAN, CLIP_STD, True)
OTHER = PixelStatistics((0.5, 0.25, 0.75), (0.5, 0.4, 0.3), False)


def smooth_picture(size: int = 96) -> np.ndarray:
    """Waves of several lengths in each colour, uint8 (S, S, 3)."""
    places = np.arange(size)
    waves = [np.sin(places[:, None] / length + places[None] / (length + 3)) for length in (3, 7, 19)]
    return ((np.stack(waves, axis=2) + 1) * 127.5).astype(np.uint8)


def normalized(picture: np.ndarray, mean: object, std: object) -> torch.Tensor:
    """(S, S, 3) uint8 → (1, 3, S, S) float32."""
    values = (picture.astype(np.float32) / np.float32(255) - np.float32(mean)) / np.float32(std)
    return torch.from_numpy(values).permute(2, 0, 1).unsqueeze(0)


def test_each_has_its_own_statistics() -> None:
    picture = smooth_picture()
    pixels = torch.from_numpy(picture).permute(2, 0, 1).unsqueeze(0)
    high, low = PixelNormalizer.of_encoders(CLIP, OTHER, published=False)(pixels, 96)
    # of the same size nothing is resized, and the bits are those of plain arithmetic
    assert torch.equal(high, normalized(picture, OTHER.mean, OTHER.std))
    assert torch.equal(low, normalized(picture, CLIP.mean, CLIP.std))


def test_the_view_of_the_picture_is_pillow_s_bicubic() -> None:
    picture = smooth_picture()
    pixels = torch.from_numpy(picture).permute(2, 0, 1).unsqueeze(0)
    _, low = PixelNormalizer.of_encoders(CLIP, CLIP, published=False)(pixels, 42)
    resized = np.array(Image.fromarray(picture).resize((42, 42), Image.Resampling.BICUBIC))
    wanted = normalized(resized, CLIP.mean, CLIP.std)
    # Pillow rounds between its two passes: one grey level of 255, in CLIP's deviations
    assert (low - wanted).abs().max() <= 1.01 / 255 / min(CLIP.std)
    # measured: in 15 % of the values
    assert ((low - wanted).abs() > 1e-6).float().mean() < 0.25


def test_the_published_pair_resizes_normalised_pixels() -> None:
    pixels = torch.randint(256, (2, 3, 96, 96), dtype=torch.uint8)
    normalizer = PixelNormalizer.of_encoders(CLIP, CLIP, published=True)
    high, low = normalizer(pixels, 42)
    view = torch.nn.functional.interpolate(high, size=(42, 42), mode="bilinear", align_corners=False)
    assert torch.equal(low, view) and normalizer.settings() == {"mean": list(CLIP_MEAN), "std": list(CLIP_STD)}


@pytest.mark.parametrize(("high", "published"), [(None, True), (CLIP, True), (CLIP, False), (OTHER, True)])
def test_settings_make_it_again(high: PixelStatistics | None, published: bool) -> None:
    normalizer = PixelNormalizer.of_encoders(CLIP, high, published)
    again = PixelNormalizer(**normalizer.settings())
    pixels = torch.randint(256, (1, 3, 32, 32), dtype=torch.uint8)
    assert all(torch.equal(a, b) for a, b in zip(normalizer(pixels, 16), again(pixels, 16), strict=True))
    assert again.to(torch.bfloat16).settings() == normalizer.settings()


def test_two_sets_of_statistics_have_no_common_view() -> None:
    with pytest.raises(XTunerError, match="low_view is 'normalized' with the statistics"):
        PixelNormalizer(high_mean=MEAN, high_std=STD)


@pytest.mark.parametrize(
    ("low", "high", "view"),
    [("clip", "open_clip", "normalized"), ("siglip", "open_clip", "picture"), ("clip", "timm_resnet", "picture")],
)
def test_the_pair_decides(tmp_path: Path, low: str, high: str, view: str) -> None:
    from mg_llava.model.encoders import HighResEncoder, LowResEncoder

    vision = VisionSide(
        LowResEncoder(str(low_folder(low, tmp_path).path)),
        {"type": MLPProjector},
        8,
        HighResEncoder(str(high_folder(high, tmp_path).path), 64),
        {"type": ConvGateFusion},
        {"type": ObjectEncoder},
    )
    assert vision.make_normalizer().low_view == view
