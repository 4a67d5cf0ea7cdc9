"""Both encoders from their folders: sizes, values, bad folders, no weights under meta_init."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mg_llava.model.encoders import HighResEncoder, LowResEncoder
from tests.tiny_parts import HIGH_SIZE, LOW_SIZE, tiny_clip, tiny_clip_folder, tiny_convnext_folder
from xtuner.errors import XTunerError
from xtuner.model.meta import meta_init


class TestLowRes:
    @pytest.mark.parametrize("layer", [-1, -2, -3])
    def test_tokens_are_the_chosen_hidden_state(self, tmp_path: Path, layer: int) -> None:
        encoder = LowResEncoder(str(tiny_clip_folder(tmp_path)), select_layer=layer).eval()
        pixels = torch.randn(2, 3, LOW_SIZE, LOW_SIZE)
        with torch.no_grad():
            states = tiny_clip()(pixels, output_hidden_states=True).hidden_states
            tokens = encoder(pixels)
        # measured 0.0
        torch.testing.assert_close(tokens, states[layer][:, 1:], rtol=0, atol=1e-6)
        assert tokens.shape == (2, encoder.num_tokens, encoder.channels)
        assert (encoder.grid, encoder.num_tokens, encoder.image_size) == ((2, 2), 4, LOW_SIZE)

    def test_layers_above_are_not_built(self, tmp_path: Path) -> None:
        encoder = LowResEncoder(str(tiny_clip_folder(tmp_path)))
        assert len(encoder.clip.encoder.layers) == 2

    @pytest.mark.parametrize("layer", [0, 1, -4])
    def test_layer_that_is_not_there(self, tmp_path: Path, layer: int) -> None:
        with pytest.raises(XTunerError, match=f"select_layer is {layer}: expected -3 to -1"):
            LowResEncoder(str(tiny_clip_folder(tmp_path)), select_layer=layer)

    def test_no_such_folder(self, tmp_path: Path) -> None:
        with pytest.raises(XTunerError, match="low-resolution encoder .* cannot be read"):
            LowResEncoder(str(tmp_path / "nothing"))

    def test_incomplete_weights_are_refused(self, tmp_path: Path) -> None:
        from safetensors.torch import load_file, save_file

        folder = tiny_clip_folder(tmp_path)
        state = load_file(folder / "model.safetensors")
        state = {key: value for key, value in state.items() if "layers.1" not in key}
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(XTunerError, match="lacks 16 weights"):
            LowResEncoder(str(folder))


class TestHighRes:
    def test_sizes(self, tmp_path: Path) -> None:
        encoder = HighResEncoder(str(tiny_convnext_folder(tmp_path)), HIGH_SIZE)
        assert encoder.strides == [4, 8, 16, 32]
        assert encoder.grid == (2, 2)
        maps = encoder(torch.zeros(1, 3, HIGH_SIZE, HIGH_SIZE))
        assert [tuple(stage.shape[1:]) for stage in maps] == [
            (channels, HIGH_SIZE // stride, HIGH_SIZE // stride)
            for channels, stride in zip(encoder.channels, encoder.strides, strict=True)
        ]

    def test_channels_last_changes_the_layout_only(self, tmp_path: Path) -> None:
        folder = str(tiny_convnext_folder(tmp_path))
        pixels = torch.randn(2, 3, HIGH_SIZE, HIGH_SIZE, generator=torch.Generator().manual_seed(0))
        plain, last = (HighResEncoder(folder, HIGH_SIZE, channels_last=value).eval() for value in (False, True))
        layouts: list[bool] = []
        for encoder in (plain, last):
            encoder.stem.register_forward_pre_hook(
                lambda _, inputs: layouts.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
            )
        with torch.no_grad():
            expected, found = plain(pixels), last(pixels)
        assert layouts == [False, True]
        for ours, theirs in zip(found, expected, strict=True):
            # other kernels, sums in another order: worst seen 1e-6
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)

    def test_folder_without_weights(self, tmp_path: Path) -> None:
        folder = tiny_convnext_folder(tmp_path)
        (folder / "open_clip_model.safetensors").unlink()
        with pytest.raises(XTunerError, match="holds no weights: expected one of open_clip_model.safetensors"):
            HighResEncoder(str(folder), HIGH_SIZE)

    def test_folder_without_config(self, tmp_path: Path) -> None:
        with pytest.raises(XTunerError, match="has no open_clip_config.json"):
            HighResEncoder(str(tmp_path), HIGH_SIZE)

    def test_broken_config(self, tmp_path: Path) -> None:
        folder = tiny_convnext_folder(tmp_path)
        (folder / "open_clip_config.json").write_text("{")
        with pytest.raises(XTunerError, match="is not JSON"):
            HighResEncoder(str(folder), HIGH_SIZE)

    def test_no_timm_model(self, tmp_path: Path) -> None:
        folder = tiny_convnext_folder(tmp_path)
        (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"vision_cfg": {"layers": 12}}}))
        with pytest.raises(XTunerError, match="names no timm model"):
            HighResEncoder(str(folder), HIGH_SIZE)

    def test_weights_of_another_model(self, tmp_path: Path) -> None:
        folder = tiny_convnext_folder(tmp_path)
        config = json.loads((folder / "open_clip_config.json").read_text())
        config["model_cfg"]["vision_cfg"]["timm_model_name"] = "test_convnext2"
        (folder / "open_clip_config.json").write_text(json.dumps(config))
        with pytest.raises(XTunerError, match="does not fit its open_clip_config.json"):
            HighResEncoder(str(folder), HIGH_SIZE)

    def test_size_that_the_stride_does_not_divide(self, tmp_path: Path) -> None:
        with pytest.raises(XTunerError, match="stride of 32 px does not divide"):
            HighResEncoder(str(tiny_convnext_folder(tmp_path)), 70)


class TestUnderMetaInit:
    """Published sizes without files and without a network."""

    def test_published_sizes(self) -> None:
        with meta_init():
            low = LowResEncoder("openai/clip-vit-large-patch14-336")
            high = HighResEncoder("checkpoints/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup")
        assert (low.channels, low.grid, low.num_tokens) == (1024, (24, 24), 576)
        assert (high.channels, high.grid) == ([192, 384, 768, 1536], (24, 24))
        assert all(parameter.is_meta for part in (low, high) for parameter in part.parameters())
