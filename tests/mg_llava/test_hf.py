"""Exported folders: everything comes back, to the last bit, from the folder alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mg_llava.assistant import Assistant
from mg_llava.hf import load_assistant, load_pretrained, save_pretrained
from tests.tiny_assistant import tiny_assistant
from tests.tiny_parts import tiny_batch
from xtuner.errors import XTunerError


def logits(assistant_model: Any, size: int) -> torch.Tensor:
    data = tiny_batch(lengths=(12, 9), pictures=(1, 2), size=size)
    with torch.inference_mode():
        return assistant_model(**assistant_model.data_preprocessor(data), mode="logits")


def trained(assistant: Assistant) -> Assistant:
    """Random numbers in all trained parts, so that none can be forgotten unseen."""
    generator = torch.Generator().manual_seed(7)
    for part in ("fusion", "projector", "object_encoder"):
        module = getattr(assistant.model, part)
        for parameter in module.parameters() if module is not None else ():
            parameter.data = torch.randn(parameter.shape, generator=generator).to(parameter.dtype) * 0.1
    return assistant


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export whose sources are gone."""
    root = tmp_path_factory.mktemp("export")
    assistant, node = tiny_assistant(root / "parts")
    save_pretrained(trained(assistant), node, root / "hf", {"config": "tiny"})
    shutil.rmtree(root / "parts")
    return root / "hf"


class TestRoundTrip:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
    @pytest.mark.parametrize("kind", ["whole", "low_res_only", "tied"])
    def test_logits_are_bit_equal_without_the_original_paths(
        self, tmp_path: Path, kind: str, dtype: torch.dtype
    ) -> None:
        arguments: dict[str, Any] = {"tie_word_embeddings": True} if kind == "tied" else {}
        assistant, node = tiny_assistant(tmp_path / "parts", low_res_only=kind == "low_res_only", **arguments)
        trained(assistant).model.to(dtype)
        size = assistant.image_processor.image_size
        expected = logits(assistant.model, size)
        folder = save_pretrained(assistant, node, tmp_path / "hf")
        shutil.rmtree(tmp_path / "parts")
        model, tokenizer, image_processor, template = load_pretrained(folder)
        assert torch.equal(logits(model, size), expected)
        assert {p.dtype for p in model.parameters()} == {dtype}
        assert tokenizer.get_vocab() == assistant.tokenizer.get_vocab()
        assert template == assistant.template
        assert image_processor.image_size == size and image_processor.statistics == assistant.image_processor.statistics
        assert load_assistant(folder).boxes == assistant.boxes

    def test_shards_load_too(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import mg_llava.hf as hf

        save = hf.save_torch_state_dict
        monkeypatch.setattr(
            hf, "save_torch_state_dict", lambda *args, **kwargs: save(*args, **kwargs, max_shard_size="100KB")
        )
        assistant, node = tiny_assistant(tmp_path / "parts")
        expected = logits(trained(assistant).model, 64)
        folder = save_pretrained(assistant, node, tmp_path / "hf")
        assert len(list(folder.glob("model-*.safetensors"))) > 1
        assert torch.equal(logits(load_assistant(folder).model, 64), expected)

    def test_saving_again_gives_the_same_weights(self, exported: Path, tmp_path: Path) -> None:
        node = json.loads((exported / "config.json").read_text())["model"]
        for part, argument in (
            ("llm", "name_or_path"),
            ("low_res_encoder", "name_or_path"),
            ("high_res_encoder", "path"),
        ):
            node[part][argument] = str(exported / part)
        again = save_pretrained(load_assistant(exported), node, tmp_path / "again")
        for name in ("model.safetensors", "buffers.safetensors"):
            assert (again / name).read_bytes() == (exported / name).read_bytes()

    def test_no_path_of_this_machine_stays(self, exported: Path) -> None:
        config = (exported / "config.json").read_text()
        assert str(exported.parent) not in config
        assert json.loads(config)["source"] == {"config": "tiny"}


class TestTarget:
    def test_an_earlier_export_is_replaced_and_nothing_else(self, tmp_path: Path) -> None:
        assistant, node = tiny_assistant(tmp_path / "parts")
        folder = save_pretrained(assistant, node, tmp_path / "hf")
        (folder / "leftover").touch()
        save_pretrained(assistant, node, tmp_path / "hf")
        assert not (folder / "leftover").exists()
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis.txt").touch()
        with pytest.raises(XTunerError, match="no earlier export"):
            save_pretrained(assistant, node, tmp_path / "mine")

    def test_a_cut_off_run_leaves_the_old_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assistant, node = tiny_assistant(tmp_path / "parts")
        folder = save_pretrained(assistant, node, tmp_path / "hf")

        def fail(*_: Any, **__: Any) -> None:
            raise OSError("no space left on device")

        monkeypatch.setattr("mg_llava.hf.save_torch_state_dict", fail)
        with pytest.raises(OSError, match="no space"):
            save_pretrained(assistant, node, tmp_path / "hf")
        assert load_assistant(folder)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "parts"]


class TestBadFolder:
    @pytest.fixture
    def copy(self, exported: Path, tmp_path: Path) -> Path:
        return Path(shutil.copytree(exported, tmp_path / "copy"))

    def change(self, folder: Path, **values: Any) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **values}))

    def test_no_export(self, tmp_path: Path) -> None:
        with pytest.raises(XTunerError, match="no exported mg_llava model"):
            load_pretrained(tmp_path)

    def test_other_version(self, copy: Path) -> None:
        self.change(copy, format_version=99)
        with pytest.raises(XTunerError, match="format version 99, expected 1"):
            load_pretrained(copy)

    def test_a_class_of_another_package_is_not_run(self, copy: Path) -> None:
        self.change(
            copy, model={"type": "mg_llava.model.MGLLaVA", "projector": {"type": "os.system", "command": "true"}}
        )
        with pytest.raises(XTunerError, match="os.system"):
            load_pretrained(copy)

    def test_missing_weights_are_named(self, copy: Path) -> None:
        (copy / "model.safetensors").unlink()
        with pytest.raises(XTunerError, match="lacks the file model.safetensors"):
            load_pretrained(copy)

    def test_incomplete_weights_are_named(self, copy: Path) -> None:
        from safetensors.torch import load_file, save_file

        state = load_file(copy / "model.safetensors")
        del state["projector.layers.0.weight"]
        save_file(state, copy / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(XTunerError, match="lacks 1 weights of its model, projector.layers.0.weight"):
            load_pretrained(copy)
