"""Quantised folders: the language model's linear layers in few bits, everything else to the last bit as it was."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mg_llava.hf import load_assistant, load_model, save_pretrained
from mg_llava.hf.quantizing import SCHEMES, quantize_folder
from mg_llava.inference.assistant import Assistant
from tests.tiny_assistant import randomize, tiny_assistant
from xtuner.cli import main
from xtuner.data.text.templates import Turn
from xtuner.errors import XTunerError
from xtuner.model.files.shards import ShardWriter

needs_library = pytest.mark.skipif(
    importlib.util.find_spec("compressed_tensors") is None, reason="needs compressed-tensors: pip install '.[quantize]'"
)
PICTURE = Image.new("RGB", (40, 30), (200, 30, 30))


def export(root: Path, **llm: Any) -> tuple[Assistant, Path]:
    assistant, node = tiny_assistant(root / "parts", **llm)
    return randomize(assistant), save_pretrained(assistant, node, root / "hf")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Assistant, Path]:
    return export(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def quantized(exported: tuple[Assistant, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantize_folder(exported[1], tmp_path_factory.mktemp("few") / "w4")


def answer(assistant: Assistant) -> list[str]:
    return assistant.generate([assistant.prepare([Turn("<image>\nwhat")], [PICTURE])], 8)


@needs_library
class TestQuantized:
    def test_every_other_weight_stays(self, exported: tuple[Assistant, Path], quantized: Path) -> None:
        before, after = (load_file(path / "model.safetensors") for path in (exported[1], quantized))
        kept = set(before) & set(after)
        assert all(torch.equal(before[name], after[name]) for name in kept)
        layers = {name.removesuffix(".weight_packed") for name in after if name.endswith(".weight_packed")}
        assert set(before) - kept == {f"{layer}.weight" for layer in layers}
        assert len(layers) == 14 and all(name.startswith("llm.model.layers.") for name in layers)
        assert "llm.lm_head.weight" in kept and "low_res_encoder.clip.encoder.layers.1.mlp.fc2.weight" in kept
        assert not {name.split(".")[0] for name in set(after) - kept} - {"llm"}

    @pytest.mark.parametrize(("scheme", "steps"), [("W4A16", 15), ("W8A16", 255), ("W8A8", 255)])
    def test_weights_are_within_half_a_step(
        self, exported: tuple[Assistant, Path], tmp_path: Path, scheme: str, steps: int
    ) -> None:
        loaded = load_assistant(quantize_folder(exported[1], tmp_path / "few", scheme), dtype=torch.float32)
        found = dict(loaded.model.llm.named_parameters())
        for name, weight in exported[0].model.llm.named_parameters():
            if name.endswith("_proj.weight"):
                groups = weight.reshape(len(weight), -1, 32 if scheme != "W8A8" else weight.shape[1])
                step = groups.abs().amax(-1, keepdim=True) * 2 / steps
                assert ((found[name].reshape(groups.shape) - groups).abs() <= step / 2 * 1.001).all(), name
            else:
                assert torch.equal(found[name], weight)
        assert answer(loaded) and loaded.boxes == exported[0].boxes

    def test_eight_bits_answer_as_the_whole(self, exported: tuple[Assistant, Path], tmp_path: Path) -> None:
        # the answer's margins are far above the rounding of 8 bits in this model of one seed
        few = load_assistant(quantize_folder(exported[1], tmp_path / "few", "W8A16"), dtype=torch.float32)
        assert answer(few) == answer(exported[0])

    def test_config_and_card_say_so(self, exported: tuple[Assistant, Path], quantized: Path) -> None:
        config = json.loads((quantized / "config.json").read_text())
        described = config["quantization_config"]
        assert described["quant_method"] == "compressed-tensors" and described["format"] == "pack-quantized"
        assert described["config_groups"]["group_0"]["weights"]["group_size"] == 32
        assert config["source"]["quantized"] == {"scheme": "W4A16", "from": "hf"}
        card = (quantized / "README.md").read_text()
        assert card.startswith((exported[1] / "README.md").read_text()) and "W4A16" in card
        sizes = [(path / "model.safetensors").stat().st_size for path in (quantized, exported[1])]
        assert sizes[0] < sizes[1]

    @pytest.mark.parametrize(("width", "group"), [(128, 128), (64, 64), (48, None)])
    def test_groups_divide_the_width(self, tmp_path: Path, width: int, group: int | None) -> None:
        _, folder = export(tmp_path, hidden_size=width, intermediate_size=2 * width)
        few = quantize_folder(folder, tmp_path / "few")
        weights = json.loads((few / "config.json").read_text())["quantization_config"]["config_groups"]["group_0"]
        assert weights["weights"]["group_size"] == group
        assert answer(load_assistant(few, dtype=torch.float32))

    def test_fused_layers(self, tmp_path: Path) -> None:
        from transformers import Phi3Config, Phi3ForCausalLM

        from tests.tiny_assistant import tiny_model_node, tiny_tokenizer
        from xtuner.registry import build

        node = tiny_model_node(tmp_path / "parts")
        sizes = {"vocab_size": 128, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
        ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        Phi3ForCausalLM(Phi3Config(**sizes, **heads, **ids)).save_pretrained(tmp_path / "parts" / "llm")
        tokenizer = tiny_tokenizer(tmp_path / "parts" / "llm")
        from mg_llava.pictures.preprocess import ImageProcessor

        processor = ImageProcessor(str(tmp_path / "parts" / "clip"), image_size=64)
        assistant = Assistant(build(node).eval(), tokenizer, processor, "vicuna")
        few = quantize_folder(save_pretrained(assistant, node, tmp_path / "hf"), tmp_path / "few")
        packed = [name for name in load_file(few / "model.safetensors") if name.endswith("weight_packed")]
        assert len(packed) == 8 and any("gate_up_proj" in name for name in packed)
        assert answer(load_assistant(few, dtype=torch.float32))

    def test_a_cut_off_run_leaves_nothing(
        self, exported: tuple[Assistant, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def cut(self: ShardWriter) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(ShardWriter, "finish", cut)
        with pytest.raises(KeyboardInterrupt):
            quantize_folder(exported[1], tmp_path / "few")
        assert not list(tmp_path.iterdir())

    def test_an_empty_folder_is_a_place(self, exported: tuple[Assistant, Path], tmp_path: Path) -> None:
        (tmp_path / "few").mkdir()
        assert quantize_folder(exported[1], tmp_path / "few") == tmp_path / "few"


@needs_library
class TestCommands:
    def test_convert_quantize(
        self, exported: tuple[Assistant, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        command = ["convert", "quantize", str(exported[1]), str(tmp_path / "few"), "--scheme", "W8A8"]
        assert main(command) == 0
        assert "MB of weights in place of" in capsys.readouterr().err
        assert main(command) == 1
        assert "few' exists: name a new folder" in capsys.readouterr().err

    @pytest.mark.parametrize("converter", ["hf_to_pth", "split"])
    def test_other_converters_want_whole_weights(
        self, quantized: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], converter: str
    ) -> None:
        assert main(["convert", converter, str(quantized), str(tmp_path / "out.pth")]) == 1
        assert "quantised" in (said := capsys.readouterr().err) and "made from" in said, said

    def test_not_twice(self, quantized: Path, tmp_path: Path) -> None:
        with pytest.raises(XTunerError, match="quantised already: quantise the folder that it was made from"):
            quantize_folder(quantized, tmp_path / "fewer")
        with pytest.raises(XTunerError, match="quantised already: leave --quantization out"):
            load_model(quantized, quantization_config=object())

    def test_reading_needs_the_library(self, quantized: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        absent(monkeypatch)
        with pytest.raises(XTunerError, match="reading .* needs the package compressed-tensors"):
            load_assistant(quantized)


def absent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library as if it were not installed."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "compressed_tensors" else find(name, *rest)
    )


class TestRefused:
    def test_the_library_is_absent(
        self, exported: tuple[Assistant, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        absent(monkeypatch)
        with pytest.raises(XTunerError, match="needs the package compressed-tensors: run .pip install"):
            quantize_folder(exported[1], tmp_path / "few")
        assert not (tmp_path / "few").exists()

    @pytest.mark.parametrize("scheme", ["W4A15", "", "w4a16"])
    def test_no_such_scheme(self, exported: tuple[Assistant, Path], tmp_path: Path, scheme: str) -> None:
        with pytest.raises(XTunerError, match=f"no scheme '{scheme}': expected one of {', '.join(SCHEMES)}"):
            quantize_folder(exported[1], tmp_path / "few", scheme)

    def test_a_folder_of_the_original_layout(self, tmp_path: Path) -> None:
        (tmp_path / "old").mkdir()
        (tmp_path / "old" / "config.json").write_text(json.dumps({"model_type": "llava"}))
        with pytest.raises(XTunerError, match="is not an exported mg_llava model"):
            quantize_folder(tmp_path / "old", tmp_path / "few")

    def test_the_target_exists(self, exported: tuple[Assistant, Path], tmp_path: Path) -> None:
        (tmp_path / "few").write_text("mine")
        with pytest.raises(XTunerError, match="few' exists: name a new folder"):
            quantize_folder(exported[1], tmp_path / "few")
        with pytest.raises(XTunerError, match="hf' exists: name a new folder"):
            quantize_folder(exported[1], exported[1])
