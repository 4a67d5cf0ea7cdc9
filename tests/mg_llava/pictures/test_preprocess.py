"""Reading pictures of every kind, and the square that the encoders see."""

from __future__ import annotations

import functools
import io
import json
import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mg_llava.pictures.colors import to_rgb
from mg_llava.pictures.encoder_config import read_token_grid
from mg_llava.pictures.normalize import PixelNormalizer
from mg_llava.pictures.open import FORMATS, num_frames, open_picture, picture_size
from mg_llava.pictures.preprocess import ImageProcessor
from mg_llava.pictures.shapes import pad_and_resize, resize_and_crop
from mg_llava.pictures.statistics import CLIP_MEAN, CLIP_STD, read_pixel_statistics
from xtuner.errors import SampleError, XTunerError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("clip")
    preprocessor = {"image_mean": CLIP_MEAN, "image_std": CLIP_STD, "do_center_crop": True}
    (path / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    (path / "config.json").write_text(
        json.dumps({"model_type": "clip_vision_model", "image_size": 84, "patch_size": 14})
    )
    return str(path)


def gradient(width: int, height: int) -> Image.Image:
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([x * 5 % 256, y * 7 % 256, (x + y) % 256], axis=2).astype(np.uint8))


class TestReading:
    @pytest.mark.parametrize("suffix", ["png", "webp", "bmp", "tiff"])
    def test_lossless_files(self, suffix: str, tmp_path: Path) -> None:
        path = tmp_path / f"x.{suffix}"
        gradient(8, 5).save(path, **({"lossless": True} if suffix == "webp" else {}))
        np.testing.assert_array_equal(np.asarray(open_picture(path)), np.asarray(gradient(8, 5)))
        assert picture_size(path) == (8, 5)

    def test_an_open_stream(self) -> None:
        stream = io.BytesIO()
        gradient(8, 5).save(stream, "PNG")
        stream.seek(0)
        assert open_picture(stream).size == (8, 5)

    def test_16_bit_grey_keeps_its_upper_bits(self, tmp_path: Path) -> None:
        values = np.array([[0, 255, 256, 65535]], np.uint16)
        Image.fromarray(values).save(tmp_path / "x.png")
        assert np.asarray(open_picture(tmp_path / "x.png"))[0, :, 0].tolist() == [0, 0, 1, 255]

    def test_transparency_is_dropped(self, tmp_path: Path) -> None:
        Image.new("RGBA", (2, 2), (10, 20, 30, 0)).save(tmp_path / "x.png")
        assert open_picture(tmp_path / "x.png").getpixel((0, 0)) == (10, 20, 30)

    @pytest.mark.filterwarnings("error")
    def test_a_palette_with_transparent_entries(self, tmp_path: Path) -> None:
        image = Image.new("P", (2, 1))
        image.putpalette([10, 20, 30, 40, 50, 60])
        image.putdata([0, 1])
        image.save(tmp_path / "x.png", transparency=bytes([0, 255]))
        picture = open_picture(tmp_path / "x.png")
        assert [picture.getpixel((x, 0)) for x in (0, 1)] == [(10, 20, 30), (40, 50, 60)]

    @pytest.mark.parametrize("mode", ["1", "L", "LA", "CMYK", "YCbCr", "F"])
    def test_other_modes_become_rgb(self, mode: str) -> None:
        assert to_rgb(Image.new(mode, (3, 2))).mode == "RGB"

    def test_the_first_frame_of_a_gif(self, tmp_path: Path) -> None:
        frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
        frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
        assert open_picture(tmp_path / "x.gif").getpixel((0, 0)) == (255, 0, 0)

    def test_exif_orientation_is_only_applied_when_asked(self, tmp_path: Path) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        gradient(8, 5).save(tmp_path / "x.jpg", exif=exif)
        assert open_picture(tmp_path / "x.jpg").size == picture_size(tmp_path / "x.jpg") == (8, 5)
        turned = open_picture(tmp_path / "x.jpg", apply_exif_orientation=True)
        assert turned.size == picture_size(tmp_path / "x.jpg", apply_exif_orientation=True) == (5, 8)

    @pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp"])
    def test_a_cut_off_file_is_named(self, suffix: str, tmp_path: Path) -> None:
        path = tmp_path / f"x.{suffix}"
        gradient(64, 64).save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(XTunerError, match=f"x.{suffix}' does not decode"):
            open_picture(path)

    def test_missing_and_foreign_files(self, tmp_path: Path) -> None:
        (tmp_path / "x.png").write_text("no picture")
        for read in (open_picture, picture_size):
            with pytest.raises(XTunerError, match="does not decode"):
                read(tmp_path / "x.png")
            with pytest.raises(XTunerError, match="does not exist: check image_folder"):
                read(tmp_path / "y.png")
        with pytest.raises(XTunerError, match="bytes do not decode"):
            open_picture(io.BytesIO(b"no picture"))

    @pytest.mark.parametrize("suffix", ["eps", "ppm", "tga", "pcx", "ico", "sgi"])
    def test_other_formats_are_refused(self, suffix: str, tmp_path: Path) -> None:
        gradient(8, 5).save(tmp_path / f"x.{suffix}")
        (tmp_path / "x.png").write_bytes((tmp_path / f"x.{suffix}").read_bytes())
        with pytest.raises(SampleError, match="it is not a JPEG, PNG, WebP, GIF, BMP or TIFF file"):
            open_picture(tmp_path / "x.png")
        with pytest.raises(SampleError, match="the format is not known"):
            open_picture(io.BytesIO((tmp_path / "x.png").read_bytes()))

    def test_what_is_no_file_is_refused_before_it_is_opened(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "fifo.png")
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(tmp_path / "socket.png"))
            for name, kind in {"fifo.png": "FIFO", "socket.png": "device or socket", ".": "folder"}.items():
                for read in (open_picture, picture_size, num_frames):
                    with pytest.raises(SampleError, match=f"is a {kind}: expected a file"):
                        read(str(tmp_path / name))
        with pytest.raises(SampleError, match="is a device or socket"):
            open_picture("/dev/zero")

    @pytest.mark.parametrize("dtype", [np.int32, np.float32])
    def test_32_bit_grey_is_scaled_by_its_range(self, dtype: type, tmp_path: Path) -> None:
        values = np.array([[-1000, 0, 1000]]).astype(dtype)
        Image.fromarray(values).save(tmp_path / "x.tiff")
        assert np.asarray(open_picture(tmp_path / "x.tiff"))[0, :, 0].tolist() == [0, 128, 255]
        Image.fromarray(values * 0 + 7).save(tmp_path / "x.tiff")
        assert len(np.unique(np.asarray(open_picture(tmp_path / "x.tiff")))) == 1

    def test_floats_that_are_not_finite_are_refused(self, tmp_path: Path) -> None:
        Image.fromarray(np.array([[0, np.nan]], np.float32)).save(tmp_path / "x.tiff")
        with pytest.raises(SampleError, match="NaN or infinite"):
            open_picture(tmp_path / "x.tiff")

    def test_memory_is_estimated_before_decoding(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        Image.new("RGBA", (100, 100)).save(tmp_path / "x.png")
        monkeypatch.setattr("mg_llava.pictures.open.MAX_MEMORY", 79_999)
        monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
        with pytest.raises(SampleError, match=r"100 x 100 pixels \(RGBA\); decoding it takes"):
            open_picture(tmp_path / "x.png")

    @pytest.mark.filterwarnings("ignore::UserWarning")
    @given(st.data())
    @settings(max_examples=200, deadline=None)
    def test_flipped_bytes_give_a_picture_or_a_sentence(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(FORMATS))
        content = bytearray(_files()[name])
        for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=8)):
            content[place] = data.draw(st.integers(0, 255))
        check_bytes(bytes(content[: data.draw(st.integers(0, len(content)))]))
        check_bytes(bytes(content))

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore::UserWarning")
    @pytest.mark.parametrize("name", FORMATS)
    def test_many_flipped_bytes(self, name: str) -> None:
        draw = np.random.default_rng(0)
        for _ in range(20_000 // len(FORMATS)):
            content = np.frombuffer(_files()[name], np.uint8).copy()
            places = draw.integers(0, len(content), draw.integers(1, 9))
            content[places] = draw.integers(0, 256, len(places))
            check_bytes(content.tobytes())


@functools.cache
def _files() -> dict[str, bytes]:
    """A real file of every format that is read."""
    files = {}
    for name in FORMATS:
        stream = io.BytesIO()
        gradient(40, 30).save(stream, name)
        files[name] = stream.getvalue()
    return files


def check_bytes(content: bytes) -> None:
    for read in (open_picture, picture_size, num_frames):
        try:
            read(io.BytesIO(content))
        except SampleError as error:
            assert len(str(error)) < 400


class TestSquare:
    def test_padding_has_the_mean_colour(self, folder: str) -> None:
        pixels, _ = ImageProcessor(folder, 8)(Image.new("RGB", (8, 4), "white"))
        assert pixels.shape == (3, 8, 8) and pixels.dtype == torch.uint8
        assert pixels[:, 0, 0].tolist() == pixels[:, 7, 7].tolist() == [122, 116, 104]
        assert (pixels[:, 2:6] == 255).all()

    def test_without_padding_the_margins_are_cut_off(self, folder: str) -> None:
        image = gradient(12, 8)
        pixels, boxes = ImageProcessor(folder, 8, pad_to_square=False)(
            image, np.array([[0, 0, 12, 8], [0, 0, 2, 8], [3, 1, 5, 2]], np.float32)
        )
        np.testing.assert_array_equal(pixels.permute(1, 2, 0), np.asarray(image)[:, 2:10])
        # two columns go at the left: the first box is cut, the second lies outside
        assert boxes.tolist() == [[0, 0, 8, 8], [1, 1, 3, 2]]

    def test_boxes_are_rounded_half_to_even(self, folder: str) -> None:
        # 4 -> 6 pixels: 1 -> 1.5 -> 2, 3 -> 4.5 -> 4
        _, boxes = ImageProcessor(folder, 6)(gradient(4, 4), np.array([[0, 1, 3, 4]], np.float32))
        assert boxes.tolist() == [[0, 2, 4, 6]]

    def test_no_boxes(self, folder: str) -> None:
        assert ImageProcessor(folder, 8)(gradient(4, 4))[1].shape == (0, 4)

    @settings(max_examples=30, deadline=None)
    @given(st.integers(1, 300), st.integers(1, 300), st.booleans())
    def test_any_shape_gives_the_square_and_boxes_inside(self, folder: str, width: int, height: int, pad: bool) -> None:
        processor = ImageProcessor(folder, 32, pad)
        pixels, boxes = processor(gradient(width, height), np.array([[0, 0, width, height]], np.float32))
        assert pixels.shape == (3, 32, 32)
        assert boxes.shape == (1, 4) and boxes.min() >= 0 and boxes.max() <= 32
        assert max(boxes[0, 2] - boxes[0, 0], boxes[0, 3] - boxes[0, 1]) == 32

    def test_boxes_follow_the_pixels(self, folder: str) -> None:
        """A white rectangle stays where its box says."""
        image = Image.new("RGB", (90, 60), "black")
        image.paste("white", (30, 10, 60, 40))
        pixels, boxes = ImageProcessor(folder, 180)(image, np.array([[30, 10, 60, 40]], np.float32))
        rows, columns = torch.nonzero(pixels[0] > 150, as_tuple=True)
        found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(found, boxes[0], atol=1)

    def test_image_tokens(self, folder: str) -> None:
        assert ImageProcessor(folder).num_image_tokens == 36 and read_token_grid(folder) == (6, 6)


class TestNormalizer:
    def test_formula(self) -> None:
        pixels = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 3, 16, 16)
        high, low = PixelNormalizer()(pixels, 16)
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
        torch.testing.assert_close(high, (pixels / 255 - mean) / std, rtol=0, atol=0)
        torch.testing.assert_close(low, high, rtol=0, atol=0)

    def test_low_resolution_is_the_normalised_picture_resized(self) -> None:
        high, low = PixelNormalizer()(torch.randint(256, (2, 3, 12, 12), dtype=torch.uint8), 4)
        # from 12 to 4 bilinearly without antialias: the middle one of three pixels
        torch.testing.assert_close(low, high[:, :, 1::3, 1::3], rtol=0, atol=0)

    def test_no_pictures(self) -> None:
        high, low = PixelNormalizer()(torch.zeros((0, 3, 8, 8), dtype=torch.uint8), 4)
        assert high.shape == (0, 3, 8, 8) and low.shape == (0, 3, 4, 4)

    def test_casting_the_model_changes_no_bit(self) -> None:
        pixels = torch.randint(256, (1, 3, 8, 8), dtype=torch.uint8)
        cast = PixelNormalizer().to(torch.bfloat16)
        assert cast(pixels, 8)[0].dtype == torch.float32
        torch.testing.assert_close(cast(pixels, 8)[0], PixelNormalizer()(pixels, 8)[0], rtol=0, atol=0)
        assert not cast.state_dict() and not list(cast.parameters())

    @pytest.mark.gpu
    def test_a_gpu_gives_the_same_bits(self) -> None:
        pixels = torch.randint(256, (2, 3, 768, 768), dtype=torch.uint8)
        high, low = PixelNormalizer()(pixels, 336)
        high_gpu, low_gpu = PixelNormalizer().cuda()(pixels.cuda(), 336)
        torch.testing.assert_close(high_gpu.cpu(), high, rtol=0, atol=0)
        torch.testing.assert_close(low_gpu.cpu(), low, rtol=0, atol=1e-6)


class TestSettings:
    def test_statistics(self, folder: str) -> None:
        statistics = read_pixel_statistics(folder)
        assert statistics.pad_color == (122, 116, 104) and statistics.crops

    @pytest.mark.parametrize("content", [{}, {"image_mean": [0.5], "image_std": [1, 1, 1]}])
    def test_a_config_without_statistics(self, content: Any, tmp_path: Path) -> None:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
        with pytest.raises(XTunerError, match="image_mean=.*expected three numbers"):
            read_pixel_statistics(str(tmp_path))

    def test_no_preprocessor_config(self, tmp_path: Path) -> None:
        with pytest.raises(XTunerError, match="preprocessor_config.json"):
            ImageProcessor(str(tmp_path))

    def test_a_bad_size(self, folder: str) -> None:
        with pytest.raises(XTunerError, match="image_size=0"):
            ImageProcessor(folder, 0)


@settings(max_examples=60, deadline=None)
@given(width=st.integers(1, 120), height=st.integers(1, 120), size=st.integers(8, 100), seed=st.integers(0, 9))
def test_padding_that_is_not_resized_changes_no_bit(width: int, height: int, size: int, seed: int) -> None:
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))
    side = max(width, height)
    padded = Image.new("RGB", (side, side), (122, 116, 104))
    padded.paste(image, ((side - width) // 2, (side - height) // 2))
    wanted = np.asarray(padded.resize((size, size), Image.Resampling.BICUBIC))
    assert np.array_equal(np.asarray(pad_and_resize(image, size, (122, 116, 104))), wanted)


@pytest.mark.parametrize("size", [(1, 700), (700, 1), (20, 3000), (3000, 20), (2, 9), (300, 60), (60, 300)])
def test_extreme_shapes_are_what_padding_the_whole_gives(size: tuple[int, int]) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    side, target = max(size), 64
    padded = Image.new("RGB", (side, side), (122, 116, 104))
    padded.paste(image, ((side - size[0]) // 2, (side - size[1]) // 2))
    wanted = np.asarray(padded.resize((target, target), Image.Resampling.BICUBIC))
    assert np.array_equal(np.asarray(pad_and_resize(image, target, (122, 116, 104))), wanted)
    longer = int(target * side / min(size))
    resized = (target, longer) if size[0] < size[1] else (longer, target)
    left, top = (resized[0] - target) // 2, (resized[1] - target) // 2
    whole = image.resize(resized, Image.Resampling.BICUBIC).crop((left, top, left + target, top + target))
    difference = np.asarray(resize_and_crop(image, target, resized)).astype(int) - np.asarray(whole)
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("pad", [True, False])
def test_an_extreme_shape_costs_what_its_pixels_cost(pad: bool, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    new = Image.new

    def counted(mode: str, size: tuple[int, int], *args: Any) -> Image.Image:
        made.append(size[0] * size[1])
        return new(mode, size, *args)

    monkeypatch.setattr(Image, "new", counted)
    processor = ImageProcessor(folder, 64, pad_to_square=pad)
    tall = processor.pixels(new("RGB", (2, 20_000), "red"))
    wide = processor.pixels(new("RGB", (20_000, 2), "red"))
    assert torch.equal(tall, wide.permute(0, 2, 1)) and sum(made) < 2_000_000
