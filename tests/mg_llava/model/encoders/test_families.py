"""Each family of encoders against its own library: folders, hidden states, maps, sizes, and folders of other kinds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from mg_llava import model as public
from mg_llava.model.encoders import HighResEncoder, LowResEncoder
from mg_llava.model.vision import check_parts
from mg_llava.pictures.encoder_config import read_token_grid
from mg_llava.pictures.statistics import read_pixel_statistics
from tests.tiny_encoders import HIGH_NAMES, LOW_NAMES, MEAN, STD, high_folder, low_folder
from xtuner.errors import XTunerError
from xtuner.model.meta import meta_init


class TestLowRes:
    @pytest.mark.parametrize("name", LOW_NAMES)
    def test_hidden_states_of_the_library(self, tmp_path: Path, name: str) -> None:
        folder = low_folder(name, tmp_path)
        for layer in (-1, -2):
            encoder = LowResEncoder(str(folder.path), select_layer=layer).eval()
            assert type(encoder) is getattr(public, folder.kind)
            assert (encoder.image_size, encoder.grid, encoder.num_tokens) == (28, (2, 2), 4)
            assert encoder.num_prefix_tokens == folder.prefix_tokens
            assert len(list(encoder.layers)) == 4 + layer
            pixels = torch.randn(2, 3, 28, 28)
            with torch.no_grad():
                tokens, states = encoder(pixels), folder.hidden_states(pixels)
            assert tokens.shape == (2, 4, encoder.channels)
            # measured 0.0 for all
            torch.testing.assert_close(tokens, states[layer][:, folder.prefix_tokens :], rtol=0, atol=1e-6)

    @pytest.mark.parametrize("name", LOW_NAMES)
    def test_the_config_alone_gives_the_shape(self, tmp_path: Path, name: str) -> None:
        folder = low_folder(name, tmp_path)
        encoder = LowResEncoder(str(folder.path))
        with meta_init():
            again = LowResEncoder(encoder.exported_config())
        shapes = {key: value.shape for key, value in encoder.state_dict().items()}
        assert {key: value.shape for key, value in again.state_dict().items()} == shapes
        assert all(value.is_meta for value in again.state_dict().values())
        assert read_token_grid(str(folder.path)) == encoder.grid

    @pytest.mark.parametrize("name", [name for name in LOW_NAMES if name != "clip"])
    def test_every_weight_gets_a_gradient(self, tmp_path: Path, name: str) -> None:
        encoder = LowResEncoder(str(low_folder(name, tmp_path).path), select_layer=-1)
        encoder(torch.randn(1, 3, 28, 28)).square().sum().backward()
        without = [key for key, weight in encoder.named_parameters() if weight.grad is None]
        assert without == []

    @pytest.mark.parametrize("name", [name for name in LOW_NAMES if name != "aimv2"])
    def test_another_size(self, tmp_path: Path, name: str) -> None:
        folder = low_folder(name, tmp_path)
        encoder = LowResEncoder(str(folder.path), image_size=56).eval()
        assert (encoder.image_size, encoder.grid) == (56, (4, 4))
        with torch.no_grad():
            assert encoder(torch.randn(1, 3, 56, 56)).shape == (1, 16, encoder.channels)
        assert read_token_grid(str(folder.path), 56) == (4, 4)

    @pytest.mark.parametrize("name", [name for name in LOW_NAMES if name != "aimv2"])
    def test_no_square(self, tmp_path: Path, name: str) -> None:
        encoder = LowResEncoder(str(low_folder(name, tmp_path).path), image_size=[28, 56]).eval()
        assert encoder.grid == (2, 4)
        with torch.no_grad():
            assert encoder(torch.randn(1, 3, 28, 56)).shape == (1, 8, encoder.channels)

    def test_another_size_where_positions_are_learned(self, tmp_path: Path) -> None:
        with pytest.raises(XTunerError, match="learned positions for pictures of 28 px, not 56"):
            LowResEncoder(str(low_folder("aimv2", tmp_path).path), image_size=56)

    def test_a_picture_smaller_than_a_patch(self, tmp_path: Path) -> None:
        with pytest.raises(XTunerError, match="10 px wide, less than a patch of 14 px"):
            LowResEncoder(str(low_folder("dinov2", tmp_path).path), image_size=10)

    @pytest.mark.parametrize(("whole", "prefix"), [("CLIP", 1), ("Siglip", 0), ("MetaClip2", 1), ("Aimv2", 0)])
    def test_a_folder_with_the_text_tower(self, tmp_path: Path, whole: str, prefix: int) -> None:
        sizes = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
        text = {**sizes, "vocab_size": 60, "max_position_embeddings": 8, "pad_token_id": 0, "bos_token_id": 1}
        vision = {**sizes, "image_size": 28, "patch_size": 14}
        config = getattr(transformers, f"{whole}Config")(
            text_config={**text, "eos_token_id": 2}, vision_config=vision, projection_dim=24
        )
        model = getattr(transformers, f"{whole}Model")(config).eval()
        model.save_pretrained(tmp_path)
        pixels = torch.randn(1, 3, 28, 28)
        with torch.no_grad():
            states = model.vision_model(pixels, output_hidden_states=True).hidden_states
            tokens = LowResEncoder(str(tmp_path)).eval()(pixels)
        torch.testing.assert_close(tokens, states[-2][:, prefix:], rtol=0, atol=1e-6)


class TestHighRes:
    @pytest.mark.parametrize("name", HIGH_NAMES)
    def test_maps_of_the_library(self, tmp_path: Path, name: str) -> None:
        folder = high_folder(name, tmp_path)
        encoder = HighResEncoder(str(folder.path), folder.size, channels_last=False).eval()
        assert type(encoder) is getattr(public, folder.kind)
        assert encoder.grid == (2, 2)
        pixels = torch.randn(2, 3, folder.size, folder.size)
        with torch.no_grad():
            maps, expected = encoder(pixels), folder.maps(pixels)
        sides = [folder.size // stride for stride in encoder.strides]
        shapes = [(2, channels, side, side) for channels, side in zip(encoder.channels, sides, strict=True)]
        assert [tuple(stage.shape) for stage in maps] == shapes
        for found, wanted in zip(maps, expected, strict=True):
            # measured 0.0 for all
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("name", HIGH_NAMES)
    def test_no_square(self, tmp_path: Path, name: str) -> None:
        folder = high_folder(name, tmp_path)
        encoder = HighResEncoder(str(folder.path), [folder.size, 2 * folder.size]).eval()
        assert encoder.grid == (2, 4)
        with torch.no_grad():
            maps = encoder(torch.randn(1, 3, folder.size, 2 * folder.size))
        assert [tuple(stage.shape[-2:]) for stage in maps] == encoder.grids
        with pytest.raises(XTunerError, match=r"\d+ px high, which its encoder's stride"):
            HighResEncoder(str(folder.path), [folder.size + 1, folder.size])

    @pytest.mark.parametrize("name", HIGH_NAMES)
    def test_the_config_alone_gives_the_shape(self, tmp_path: Path, name: str) -> None:
        folder = high_folder(name, tmp_path)
        encoder = HighResEncoder(str(folder.path), folder.size)
        with meta_init():
            again = HighResEncoder(json.loads(json.dumps(encoder.exported_config())), folder.size)
        assert {k: v.shape for k, v in again.state_dict().items()} == {
            k: v.shape for k, v in encoder.state_dict().items()
        }
        assert (again.channels, again.strides) == (encoder.channels, encoder.strides)

    @pytest.mark.parametrize("name", HIGH_NAMES)
    def test_a_size_that_the_strides_do_not_divide(self, tmp_path: Path, name: str) -> None:
        folder = high_folder(name, tmp_path)
        stride = folder.size // 2
        sizes = f"{2 * stride} or {3 * stride}"
        with pytest.raises(XTunerError, match=f"{2 * stride + 3} px wide.*{stride} px does not divide.*{sizes}"):
            HighResEncoder(str(folder.path), 2 * stride + 3)


class TestGrids:
    """Encoders whose grids differ: the error says the size that would fit."""

    @pytest.mark.parametrize(
        ("low_size", "high_size", "words"),
        [
            (28, 128, r"low resolution 2x2 \(28 px\), high resolution 4x4 \(128 px .* set image_size_aux to 64\."),
            ([28, 56], 64, r"low resolution 2x4 \(28 x 56 px\).* set image_size_aux to \[64, 128\]\."),
        ],
    )
    def test_do_not_match(self, tmp_path: Path, low_size: object, high_size: object, words: str) -> None:
        low = LowResEncoder(str(low_folder("dinov3", tmp_path).path), image_size=low_size)  # type: ignore[arg-type]
        high = HighResEncoder(str(high_folder("dinov3_convnext", tmp_path).path), high_size)  # type: ignore[arg-type]
        with pytest.raises(XTunerError, match=words):
            check_parts(low, high, fusion={}, object_encoder=None)


class TestStatistics:
    @pytest.mark.parametrize("name", ["siglip", "timm_vit", "timm_resnet", "swin"])
    def test_each_library_s_file(self, tmp_path: Path, name: str) -> None:
        low = name in LOW_NAMES
        folder = low_folder(name, tmp_path).path if low else high_folder(name, tmp_path).path
        encoder = LowResEncoder(str(folder)) if low else HighResEncoder(str(folder), 64)
        assert encoder.statistics.scale == (tuple(MEAN), tuple(STD))

    def test_none(self, tmp_path: Path) -> None:
        folder = low_folder("siglip", tmp_path).path
        (folder / "preprocessor_config.json").unlink()
        with pytest.raises(XTunerError, match="image preprocessing of .* cannot be read"):
            LowResEncoder(str(folder)).statistics  # noqa: B018


class TestOtherFolders:
    """A folder that a class does not read: one sentence, which names the class that does."""

    @pytest.mark.parametrize("name", [name for name in LOW_NAMES if name != "clip"])
    def test_given_to_clip(self, tmp_path: Path, name: str) -> None:
        folder = low_folder(name, tmp_path)
        with pytest.raises(XTunerError, match=f"which ClipEncoder does not read: use {folder.kind}"):
            public.ClipEncoder(str(folder.path))

    @pytest.mark.parametrize("name", [name for name in HIGH_NAMES if name != "open_clip"])
    def test_given_to_open_clip(self, tmp_path: Path, name: str) -> None:
        folder = high_folder(name, tmp_path)
        with pytest.raises(XTunerError, match=f"which OpenClipConvNeXt does not read: use {folder.kind}"):
            public.OpenClipConvNeXt(str(folder.path), 64)

    def test_for_the_other_resolution(self, tmp_path: Path) -> None:
        with pytest.raises(XTunerError, match=r"for the high-resolution encoder \(SwinEncoder\)"):
            LowResEncoder(str(high_folder("swin", tmp_path).path))
        with pytest.raises(XTunerError, match=r"for the low-resolution encoder \(SiglipEncoder\)"):
            HighResEncoder(str(low_folder("siglip", tmp_path).path))

    def test_a_timm_model_without_tokens(self, tmp_path: Path) -> None:
        with pytest.raises(XTunerError, match="timm's test_resnet: expected a vision transformer"):
            LowResEncoder(str(high_folder("timm_resnet", tmp_path).path))

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            ({"model_type": "resnet"}, "family resnet, which no low-resolution encoder reads: there are Aimv2Encoder"),
            ({"model_type": "something_new"}, "family something_new, which no low-resolution encoder reads"),
            ({"architecture": "no_such_vit"}, "timm's no_such_vit, which the installed timm"),
            ({"hidden_size": 8}, "config.json that names a model_type"),
        ],
    )
    def test_of_no_family(self, tmp_path: Path, content: dict[str, object], words: str) -> None:
        (tmp_path / "config.json").write_text(json.dumps(content))
        with pytest.raises(XTunerError, match=words):
            LowResEncoder(str(tmp_path))

    @pytest.mark.parametrize("name", ["swin", "timm_swin", "timm_convnext_v2"])
    def test_the_tokens_of_a_network_of_stages_are_not_counted(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(XTunerError, match="expected a vision transformer .* belongs to visual_encoder_aux_path"):
            read_token_grid(str(high_folder(name, tmp_path).path))

    def test_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "a.json").write_text("[]")
        for kind in (LowResEncoder, HighResEncoder):
            with pytest.raises(XTunerError, match="a.json' is a file: expected a folder"):
                kind(str(tmp_path / "a.json"))
        with pytest.raises(XTunerError, match="a.json' is a file: expected a folder"):
            read_pixel_statistics(str(tmp_path / "a.json"))

    def test_a_trunk_that_the_installed_timm_lacks(self, tmp_path: Path) -> None:
        folder = high_folder("open_clip", tmp_path).path
        file = folder / "open_clip_config.json"
        file.write_text(file.read_text().replace("test_convnext", "convnext_of_tomorrow"))
        with pytest.raises(XTunerError, match="timm's convnext_of_tomorrow for pictures, which the installed timm"):
            HighResEncoder(str(folder), 64)

    def test_a_family_that_the_installed_library_lacks(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = low_folder("dinov3", tmp_path).path
        monkeypatch.setattr(public.Dinov3Encoder, "model_class", "DINOv4Model")
        with pytest.raises(XTunerError, match="has no DINOv4Model, which reads it: install a newer one"):
            LowResEncoder(str(folder))

    @pytest.mark.parametrize("name", ["siglip", "timm_vit", "dinov3_convnext", "timm_resnet"])
    def test_incomplete_weights(self, tmp_path: Path, name: str) -> None:
        low = name in LOW_NAMES
        folder = low_folder(name, tmp_path).path if low else high_folder(name, tmp_path).path
        state = load_file(folder / "model.safetensors")
        first = next(key for key in state if key.endswith("weight") and "norm" not in key and "head" not in key)
        del state[first]
        for file in folder.glob("*.bin"):
            file.unlink()
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(XTunerError, match="lacks 1 weight|1 of the"):
            LowResEncoder(str(folder)) if low else HighResEncoder(str(folder), 64)
