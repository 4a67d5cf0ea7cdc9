"""``xtuner convert pth_to_hf``: a checkpoint to a folder that answers as the trained model does."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from mg_llava.hf import load_assistant
from tests.tiny_parts import tiny_batch
from tests.xtuner.tools.conftest import Trained
from xtuner.cli import main
from xtuner.config import load_config, parse_overrides
from xtuner.registry import build
from xtuner.tools.trained_model import build_trained

ROOT = Path(__file__).parents[3]


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model(**model.data_preprocessor(tiny_batch(size=64)), mode="logits")


def test_equal_logits(trained: Trained, tmp_path: Path) -> None:
    assert (
        main(["convert", "pth_to_hf", trained.config, str(trained.checkpoint), str(tmp_path / "hf"), *trained.options])
        == 0
    )
    cfg = load_config(trained.config, parse_overrides(trained.options[1:]))
    expected = logits(build_trained(cfg, str(trained.checkpoint), torch.device("cpu"), "saved"))
    assert torch.equal(logits(load_assistant(tmp_path / "hf").model), expected)


def test_dtype(trained: Trained, tmp_path: Path) -> None:
    command = ["convert", "pth_to_hf", trained.config, str(trained.checkpoint), str(tmp_path / "hf"), "--dtype", "bf16"]
    assert main([*command, *trained.options]) == 0
    assert {parameter.dtype for parameter in load_assistant(tmp_path / "hf").model.parameters()} == {torch.bfloat16}


def test_a_checkpoint_without_the_trained_parts_is_refused(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = torch.load(trained.checkpoint, weights_only=True)["state_dict"]
    partial = {key: value for key, value in state.items() if not key.startswith("llm.")}
    torch.save({"state_dict": partial}, tmp_path / "pretrain.pth")
    target = tmp_path / "hf"
    assert (
        main(["convert", "pth_to_hf", trained.config, str(tmp_path / "pretrain.pth"), str(target), *trained.options])
        == 1
    )
    assert "the part 'llm' is absent" in capsys.readouterr().err
    assert not target.exists()


def test_adapters_are_merged_and_kept(trained: Trained, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "configs", tmp_path / "configs", ignore=shutil.ignore_patterns("__pycache__"))
    leaf = tmp_path / "lora.py"
    leaf.write_text(
        "from mmengine.config import read_base\nfrom peft import LoraConfig\n\n"
        f"with read_base():\n    from .configs.phi3.{trained.config} import *\n\n"
        "llm_lora = dict(type=LoraConfig, r=2, init_lora_weights=False)\n"
        "trainable = ('fusion', 'projector', 'object_encoder')\n"
    )
    cfg = load_config(leaf, parse_overrides(trained.options[1:]))
    model = build(cfg.model)
    assert "llm" in model.trainable
    torch.save({"state_dict": model.state_dict()}, tmp_path / "lora.pth")
    expected = logits(build_trained(cfg, str(tmp_path / "lora.pth"), torch.device("cpu"), "saved"))

    command = ["convert", "pth_to_hf", str(leaf), str(tmp_path / "lora.pth"), str(tmp_path / "hf"), *trained.options]
    assert main(command) == 0
    # W x + B A x against (W + B A) x
    torch.testing.assert_close(logits(load_assistant(tmp_path / "hf").model), expected, rtol=1e-4, atol=1e-5)
    assert (tmp_path / "hf_adapters" / "llm" / "adapter_model.safetensors").is_file()


def test_an_unknown_converter(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "pth_to_hff"]) == 2
