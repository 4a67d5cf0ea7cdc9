"""``xtuner convert``: every kind of checkpoint to a folder and back, bit for bit; merging, splitting, mistakes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, CLIPVisionModel

from mg_llava.hf import load_assistant, load_model
from mg_llava.model.checkpoint_names import to_our_names, to_published_names
from tests.tiny_parts import tiny_batch, tiny_llm_folder
from tests.xtuner.tools.conftest import Trained
from tests.zero_checkpoint import save_zero_checkpoint
from xtuner.cli import main
from xtuner.config import load_config, parse_overrides
from xtuner.errors import XTunerError
from xtuner.model.files.weight_files import read_state_dict
from xtuner.registry import build
from xtuner.tools.model_converters.split import parse_size
from xtuner.tools.support.trained_model import build_trained

ROOT = Path(__file__).parents[3]


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model(**model.data_preprocessor(tiny_batch(size=64)), mode="logits")


def convert(trained: Trained, checkpoint: Path, target: Path, *words: str) -> int:
    return main(["convert", "pth_to_hf", trained.config, str(checkpoint), str(target), *words, *trained.options])


def trained_state(trained: Trained) -> dict[str, torch.Tensor]:
    return torch.load(trained.checkpoint, weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def folder(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("convert") / "hf"
    assert convert(trained, trained.checkpoint, target) == 0
    return target


def test_equal_logits(trained: Trained, folder: Path) -> None:
    cfg = load_config(trained.config, parse_overrides(trained.options[1:]))
    expected = logits(build_trained(cfg, str(trained.checkpoint), torch.device("cpu"), "saved"))
    assert torch.equal(logits(load_assistant(folder).model), expected)


class TestRoundTrip:
    """pth → folder → pth gives the same bits, in bfloat16, whatever the checkpoint's form."""

    def checkpoint(self, state: dict[str, torch.Tensor], form: str, where: Path) -> Path:
        where.mkdir()
        if form.startswith("zero"):
            return save_zero_checkpoint(state, where / "iter_3.pth", int(form[-1]))
        if form == "shards":
            names = sorted(state)
            index = {name: f"model-{number % 2}.safetensors" for number, name in enumerate(names)}
            for file in set(index.values()):
                save_file({n: state[n].contiguous() for n in names if index[n] == file}, where / file)
            (where / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
            return where
        torch.save(to_published_names(state) if form == "published" else {"state_dict": state}, where / "a.pth")
        return where / "a.pth"

    @pytest.mark.parametrize("form", ["file", "published", "shards", "zero2", "zero3"])
    def test_bits(self, trained: Trained, tmp_path: Path, form: str) -> None:
        # values that bfloat16 holds exactly, as trained in it
        state = {name: value.bfloat16().float() for name, value in trained_state(trained).items()}
        checkpoint = self.checkpoint(state, form, tmp_path / form)
        assert convert(trained, checkpoint, tmp_path / "hf", "--dtype", "bf16") == 0
        assert main(["convert", "hf_to_pth", str(tmp_path / "hf"), str(tmp_path / "back.pth")]) == 0
        back = read_state_dict(tmp_path / "back.pth")
        assert back.keys() == state.keys()
        for name, value in state.items():
            assert back[name].dtype == torch.bfloat16
            assert torch.equal(back[name].float(), value), name

    def test_a_pretrain_checkpoint_takes_the_language_model_from_its_own_files(
        self, trained: Trained, tmp_path: Path
    ) -> None:
        state = {name: value for name, value in trained_state(trained).items() if not name.startswith("llm.")}
        torch.save({"state_dict": state}, tmp_path / "iter_1.pth")
        config = trained.config.replace("sft", "pretrain")
        target = tmp_path / "hf"
        assert main(["convert", "pth_to_hf", config, str(tmp_path / "iter_1.pth"), str(target), *trained.options]) == 0
        found = load_assistant(target).model.full_state_dict()
        base = read_state_dict(trained.folder / "parts" / "llm")
        assert all(torch.equal(found[f"llm.{name}"], value) for name, value in base.items())
        assert all(torch.equal(found[name], value) for name, value in state.items())

    def test_frozen_encoders_are_in_it(self, trained: Trained, folder: Path) -> None:
        names = {name.split(".")[0] for name in read_state_dict(folder)}
        assert names == {"low_res_encoder", "high_res_encoder", "fusion", "projector", "object_encoder", "llm"}

    def test_original_layout(self, trained: Trained, tmp_path: Path) -> None:
        assert convert(trained, trained.checkpoint, tmp_path / "published.pth", "--layout", "original") == 0
        published = torch.load(tmp_path / "published.pth", weights_only=True)
        state = trained_state(trained)
        assert "fuse_module.slow_conv.weight" in published and "bbox_projector.model.0.weight" in published
        assert to_our_names(published).keys() == state.keys()
        assert convert(trained, trained.checkpoint, tmp_path / "shards", "--layout", "original") == 0
        assert read_state_dict(tmp_path / "shards").keys() == published.keys()
        assert convert(trained, trained.checkpoint, tmp_path / "shards", "--layout", "original") == 1
        assert (
            main(
                [
                    "convert",
                    "pth_to_hf",
                    trained.config,
                    *[str(tmp_path / n) for n in ("published.pth", "hf")],
                    *trained.options,
                ]
            )
            == 0
        )
        back = tmp_path / "back.pth"
        assert main(["convert", "hf_to_pth", str(tmp_path / "hf"), str(back), "--layout", "original"]) == 0
        again = read_state_dict(back)
        assert again.keys() == published.keys() and all(torch.equal(again[n], v) for n, v in published.items())

    def test_chosen_parts(self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        command = ["convert", "hf_to_pth", str(folder), str(tmp_path / "a.safetensors"), "--parts"]
        assert main([*command, "projector"]) == 0
        assert {name.split(".")[0] for name in read_state_dict(tmp_path / "a.safetensors")} == {"projector"}
        assert main([*command, "all"]) == 0
        assert read_state_dict(tmp_path / "a.safetensors").keys() == read_state_dict(folder).keys()
        assert main([*command, "projecter"]) == 1
        assert "has no part 'projecter'" in capsys.readouterr().err


class TestFolder:
    def test_says_how_it_was_trained_and_what_it_reached(self, trained: Trained, tmp_path: Path) -> None:
        run = tmp_path / "run"
        (run / "test" / "pope").mkdir(parents=True)
        (run / "test" / "pope" / "metrics.json").write_text('{"overall": 0.8712345}')
        (run / "iter_3.pth").write_bytes(trained.checkpoint.read_bytes())
        assert convert(trained, run / "iter_3.pth", tmp_path / "hf") == 0
        card = (tmp_path / "hf" / "README.md").read_text()
        assert "| pope | 0.8712 |" in card and "| lr | " in card and "| llm_name_or_path | llm |" in card
        source = json.loads((tmp_path / "hf" / "config.json").read_text())["source"]
        assert source["checkpoint"] == "iter_3.pth" and source["config"] == trained.config
        assert str(trained.folder) not in card + json.dumps(source)

    def test_dtype(self, trained: Trained, tmp_path: Path) -> None:
        assert convert(trained, trained.checkpoint, tmp_path / "hf", "--dtype", "bf16") == 0
        assert {p.dtype for p in load_assistant(tmp_path / "hf").model.parameters()} == {torch.bfloat16}

    def test_a_checkpoint_without_the_trained_parts_is_refused(
        self, trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        partial = {key: value for key, value in trained_state(trained).items() if not key.startswith("llm.")}
        torch.save({"state_dict": partial}, tmp_path / "pretrain.pth")
        assert convert(trained, tmp_path / "pretrain.pth", tmp_path / "hf") == 1
        assert "this is a stage-1 checkpoint" in capsys.readouterr().err
        assert not (tmp_path / "hf").exists()

    def test_wrong_names_are_refused(
        self, trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        torch.save({f"other.{name}": value for name, value in trained_state(trained).items()}, tmp_path / "a.pth")
        assert convert(trained, tmp_path / "a.pth", tmp_path / "hf") == 1
        error = capsys.readouterr().err
        assert "does not fit this model" in error and "It holds other" in error


class TestAdapters:
    """A run with LoRA on the language model and on CLIP."""

    @pytest.fixture(scope="class")
    def lora(self, trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """A folder with config and checkpoint."""
        folder = tmp_path_factory.mktemp("lora")
        shutil.copytree(ROOT / "configs", folder / "configs", ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "lora.py").write_text(
            "from mmengine.config import read_base\nfrom peft import LoraConfig\n\n"
            f"with read_base():\n    from .configs.phi3.{trained.config} import *\n\n"
            "llm_lora = dict(type=LoraConfig, r=2, init_lora_weights=False)\n"
            "visual_encoder_lora = dict(type=LoraConfig, r=3, lora_alpha=6, init_lora_weights=False)\n"
            "trainable = ('fusion', 'projector', 'object_encoder')\n"
        )
        model = build(self.config(folder, trained).model)
        assert {"llm", "low_res_encoder"} <= set(model.trainable)
        torch.save({"state_dict": model.state_dict()}, folder / "lora.pth")
        return folder

    def config(self, folder: Path, trained: Trained) -> Any:
        return load_config(folder / "lora.py", parse_overrides(trained.options[1:]))

    def convert(self, lora: Path, trained: Trained, target: Path, *words: str) -> int:
        command = ["convert", "pth_to_hf", str(lora / "lora.py"), str(lora / "lora.pth"), str(target)]
        return main([*command, *words, *trained.options])

    def test_same_answers(self, lora: Path, trained: Trained, tmp_path: Path) -> None:
        adapted = build_trained(self.config(lora, trained), str(lora / "lora.pth"), torch.device("cpu"), "saved")
        assert self.convert(lora, trained, tmp_path / "hf") == 0
        # W x + B A x against (W + B A) x
        merged = load_assistant(tmp_path / "hf").model
        torch.testing.assert_close(logits(merged), logits(adapted), rtol=1e-4, atol=1e-5)

    def test_bits_in_bfloat16(self, lora: Path, trained: Trained, tmp_path: Path) -> None:
        """Against the sum written out, of weights in bfloat16 and adapters in bfloat16, layer by layer."""
        assert self.convert(lora, trained, tmp_path / "hf", "--dtype", "bf16") == 0
        found = load_assistant(tmp_path / "hf").model.full_state_dict()
        adapted = build_trained(self.config(lora, trained), str(lora / "lora.pth"), torch.device("cpu"), "bf16")
        state = adapted.full_state_dict()
        layers = [name.removesuffix(".base_layer.weight") for name in state if name.endswith(".base_layer.weight")]
        assert any(name.startswith("llm.") for name in layers) and any("low_res_encoder." in name for name in layers)
        for layer in layers:
            scale = adapted.get_submodule(layer).scaling["default"]
            down, up = (state[f"{layer}.lora_{letter}.default.weight"] for letter in "AB")
            expected = state[f"{layer}.base_layer.weight"] + (up @ down) * scale
            assert torch.equal(found[f"{layer}.weight"], expected), layer
        assert not any("lora" in name or "base_layer" in name for name in found)

    def test_adapters_alone_are_read_by_peft(self, lora: Path, trained: Trained, tmp_path: Path) -> None:
        assert self.convert(lora, trained, tmp_path / "hf") == 0
        saved = torch.load(lora / "lora.pth", weights_only=True)["state_dict"]
        bases = {
            "llm": AutoModelForCausalLM.from_pretrained(trained.folder / "parts" / "llm"),
            "low_res_encoder": CLIPVisionModel.from_pretrained(trained.folder / "parts" / "clip"),
        }
        for part, base in bases.items():
            read = PeftModel.from_pretrained(base, str(tmp_path / "hf_adapters" / part)).state_dict()
            ours = {name: value for name, value in saved.items() if name.startswith(f"{part}.") and "lora_" in name}
            theirs = {name: value for name, value in read.items() if "lora_" in name}
            assert ours
            for name, value in ours.items():
                inner = name.removeprefix(f"{part}.").removeprefix("clip.")
                assert torch.equal(theirs.pop(f"base_model.model.{inner}"), value), name
            # CLIP's last layer is not built here; the adapters that peft makes for it change nothing
            assert all(not value.any() for name, value in theirs.items() if "lora_B" in name)

    def test_no_published_names(
        self, lora: Path, trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.convert(lora, trained, tmp_path / "a.pth", "--layout", "original") == 1
        assert "has no names for adapters" in capsys.readouterr().err


class TestSplit:
    def test_same_model_in_smaller_files(self, folder: Path, tmp_path: Path) -> None:
        assert main(["convert", "split", str(folder), str(tmp_path / "new"), "--max-shard-size", "100KB"]) == 0
        assert len(list((tmp_path / "new").glob("model-*.safetensors"))) > 3
        assert torch.equal(logits(load_assistant(tmp_path / "new").model), logits(load_assistant(folder).model))
        assert main(["convert", "split", str(folder), str(tmp_path / "new")]) == 1

    def test_sizes(self) -> None:
        assert parse_size("2GB") == 2_000_000_000 and parse_size("1.5 kb") == 1500
        for text in ("2", "GB", "-1GB", "0KB"):
            with pytest.raises(XTunerError, match="cannot be read"):
                parse_size(text)


def save_adapter(base: Path, target: Path, seed: int = 5) -> torch.nn.Module:
    """Adapters with random numbers, saved by peft; returns the adapted model."""
    torch.manual_seed(seed)
    llm = AutoModelForCausalLM.from_pretrained(base)
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    adapted = get_peft_model(llm, lora)
    adapted.save_pretrained(target)
    return adapted


class TestMerge:
    def test_language_model(self, tmp_path: Path) -> None:
        base = tiny_llm_folder(tmp_path)
        adapted = save_adapter(base, tmp_path / "adapter")
        assert main(["convert", "merge", *[str(tmp_path / name) for name in ("llm", "adapter", "new")]]) == 0
        ids = torch.arange(3, 20).unsqueeze(0)
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "new")
        with torch.inference_mode():
            # 1e-6: sums in another order
            torch.testing.assert_close(merged(ids).logits, adapted(ids).logits, rtol=0, atol=1e-6)
            assert (merged(ids).logits - AutoModelForCausalLM.from_pretrained(base)(ids).logits).abs().max() > 1e-3

    @pytest.mark.parametrize("per_part", [False, True])
    def test_exported_folder(self, trained: Trained, folder: Path, tmp_path: Path, per_part: bool) -> None:
        adapter = tmp_path / "adapter"
        adapted = save_adapter(trained.folder / "parts" / "llm", adapter / "llm" if per_part else adapter)
        assert main(["convert", "merge", str(folder), str(adapter), str(tmp_path / "new")]) == 0
        merged, base = load_model(tmp_path / "new"), load_model(folder)
        expected = adapted.merge_and_unload().state_dict()
        for name, value in merged.llm.state_dict().items():
            assert torch.equal(value, expected[name]), name
        assert torch.equal(merged.projector.layers[0].weight, base.projector.layers[0].weight)

    def test_mistakes(self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        base = tiny_llm_folder(tmp_path)
        other = tiny_llm_folder(tmp_path / "other", hidden_size=64)
        save_adapter(other, tmp_path / "adapter")

        def error(*words: Path) -> str:
            assert main(["convert", "merge", *map(str, words), str(tmp_path / "new")]) == 1
            assert not (tmp_path / "new").exists()
            return capsys.readouterr().err

        assert "does not fit the base" in error(base, tmp_path / "adapter")
        assert "is not an adapter" in error(base, base)
        assert "is itself an adapter" in error(tmp_path / "adapter", tmp_path / "adapter")
        (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
        assert "lacks adapter_model.safetensors" in error(base, tmp_path / "adapter")


def test_an_unknown_converter() -> None:
    assert main(["convert", "pth_to_hff"]) == 2
