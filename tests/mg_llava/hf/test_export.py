"""Exported folders: everything comes back, to the last bit, from the folder alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mg_llava.hf import load_assistant, load_pretrained, save_pretrained
from tests.mg_llava.hf.conftest import Exported
from tests.tiny_assistant import randomize, tiny_assistant
from tests.tiny_parts import tiny_batch
from xtuner.errors import XTunerError


def logits(assistant_model: Any, size: int) -> torch.Tensor:
    data = tiny_batch(lengths=(12, 9), pictures=(1, 2), size=size)
    with torch.inference_mode():
        return assistant_model(**assistant_model.data_preprocessor(data), mode="logits")


class TestRoundTrip:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
    @pytest.mark.parametrize("kind", ["whole", "low_res_only", "tied"])
    def test_logits_are_bit_equal_without_the_original_paths(
        self, tmp_path: Path, kind: str, dtype: torch.dtype
    ) -> None:
        arguments: dict[str, Any] = {"tie_word_embeddings": True} if kind == "tied" else {}
        assistant, node = tiny_assistant(tmp_path / "parts", low_res_only=kind == "low_res_only", **arguments)
        for parameter in randomize(assistant).model.parameters():
            parameter.data = parameter.data.to(dtype)
        size = assistant.image_processor.image_size
        expected = logits(assistant.model, size)
        folder = save_pretrained(assistant, node, tmp_path / "hf")
        shutil.rmtree(tmp_path / "parts")
        model, tokenizer, image_processor, template = load_pretrained(folder)
        assert torch.equal(logits(model, size), expected)
        assert {p.dtype for p in model.parameters()} == {dtype}
        assert tokenizer.get_vocab() == {**assistant.tokenizer.get_vocab(), "<image>": len(assistant.tokenizer)}
        assert template == assistant.template
        assert image_processor.image_size == size and image_processor.statistics == assistant.image_processor.statistics
        assert load_assistant(folder).boxes == assistant.boxes

    def test_shards_load_too(self, tmp_path: Path) -> None:
        assistant, node = tiny_assistant(tmp_path / "parts")
        expected = logits(randomize(assistant).model, 64)
        folder = save_pretrained(assistant, node, tmp_path / "hf", max_shard_bytes=100_000)
        files = sorted(path.name for path in folder.glob("model*.safetensors"))
        assert len(files) > 3 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
        assert max(path.stat().st_size for path in folder.glob("model*.safetensors")) < 400_000
        assert torch.equal(logits(load_assistant(folder).model, 64), expected)

    def test_parts_of_different_formats_keep_them(self, tmp_path: Path) -> None:
        assistant, node = tiny_assistant(tmp_path / "parts")
        for parameter in assistant.model.llm.parameters():
            parameter.data = parameter.data.bfloat16()
        model = load_assistant(save_pretrained(assistant, node, tmp_path / "hf")).model
        found = {name: {p.dtype for p in part.parameters()} for name, part in model.parts().items()}
        assert found.pop("llm") == {torch.bfloat16}
        assert set().union(*found.values()) == {torch.float32}
        model = load_assistant(tmp_path / "hf", dtype=torch.bfloat16).model
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}

    def test_no_path_of_this_machine_stays(self, exported: Exported) -> None:
        for file in exported.folder.glob("*.json"):
            assert "/parts" not in file.read_text(), file
        config = json.loads((exported.folder / "config.json").read_text())
        assert config["source"]["config"] == "tiny"
        assert "/parts" not in (exported.folder / "README.md").read_text()

    def test_the_card_tells_parts_settings_and_results(self, tmp_path: Path) -> None:
        assistant, node = tiny_assistant(tmp_path / "parts")
        facts = {"config": "tiny_sft", "training": {"lr": 1e-3, "seed": 1}, "results": {"pope": 0.87}}
        facts |= {"training_from": "the run's own config", "passed": {"seed": 2, "max_iters": 5, "lr": None}}
        card = (save_pretrained(assistant, node, tmp_path / "hf", facts) / "README.md").read_text()
        assert card.startswith("---\n") and "# tiny_sft" in card
        assert "| lr | 0.001 (the config passed to convert: not set) |" in card
        assert "| seed | 1 (the config passed to convert: 2) |" in card
        assert "| max_iters | not set (the config passed to convert: 5) |" in card
        assert "Settings from the run's own config." in card
        assert "| pope | 0.87 |" in card and "| llm |" in card


class TestTarget:
    def test_an_earlier_export_is_replaced_and_nothing_else(self, tmp_path: Path) -> None:
        assistant, node = tiny_assistant(tmp_path / "parts")
        folder = save_pretrained(assistant, node, tmp_path / "hf")
        (folder / "leftover").touch()
        save_pretrained(assistant, node, tmp_path / "hf")
        assert not (folder / "leftover").exists()
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis.txt").touch()
        with pytest.raises(XTunerError, match="not an earlier export"):
            save_pretrained(assistant, node, tmp_path / "mine")

    def test_a_cut_off_run_leaves_the_old_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assistant, node = tiny_assistant(tmp_path / "parts")
        folder = save_pretrained(assistant, node, tmp_path / "hf")

        def fail(*_: Any, **__: Any) -> None:
            raise OSError("no space left on device")

        monkeypatch.setattr("mg_llava.hf.export.model_card", fail)
        with pytest.raises(OSError, match="no space"):
            save_pretrained(assistant, node, tmp_path / "hf")
        assert load_assistant(folder)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "parts"]


class TestBadFolder:
    @pytest.fixture
    def copy(self, exported: Exported, tmp_path: Path) -> Path:
        return Path(shutil.copytree(exported.folder, tmp_path / "copy"))

    def change(self, folder: Path, **values: Any) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **values}))

    def test_no_export(self, tmp_path: Path) -> None:
        with pytest.raises(XTunerError, match="not an exported mg_llava model"):
            load_pretrained(tmp_path)

    def test_other_version(self, copy: Path) -> None:
        self.change(copy, format_version=99)
        with pytest.raises(XTunerError, match="format version 99, expected 2"):
            load_pretrained(copy)

    def test_a_class_of_another_package_is_not_run(self, copy: Path) -> None:
        self.change(
            copy, parts={"type": "mg_llava.model.MGLLaVA", "projector": {"type": "os.system", "command": "true"}}
        )
        with pytest.raises(XTunerError, match="os.system"):
            load_pretrained(copy)

    def test_missing_weights_are_named(self, copy: Path) -> None:
        (copy / "model.safetensors").unlink()
        with pytest.raises(XTunerError, match="cannot be read: .*no file named model.safetensors"):
            load_pretrained(copy)

    def test_incomplete_weights_are_named(self, copy: Path) -> None:
        from safetensors.torch import load_file, save_file

        state = load_file(copy / "model.safetensors")
        del state["projector.layers.0.weight"]
        save_file(state, copy / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(XTunerError, match="lacks 1 weights of its model: projector.layers.0.weight"):
            load_pretrained(copy)

    def test_unknown_weights_are_named(self, copy: Path) -> None:
        from safetensors.torch import load_file, save_file

        state = load_file(copy / "model.safetensors")
        state["bbox_projector.model.0.weight"] = torch.zeros(2)
        save_file(state, copy / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(XTunerError, match="has unknown 1 weights of its model: bbox_projector"):
            load_pretrained(copy)

    def test_a_config_without_parts(self, copy: Path) -> None:
        self.change(copy, parts={})
        with pytest.raises(XTunerError, match="does not describe its parts"):
            load_pretrained(copy)
