"""What a checkpoint stands on is found again by test, convert and chat, or refused; see `xtuner.model.files.base`."""

from __future__ import annotations

import argparse
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mg_llava.hf import load_assistant as load_exported
from mg_llava.serving import command as serve
from tests.tiny_parts import tiny_batch
from tests.xtuner.tools.conftest import Trained
from xtuner.cli import main
from xtuner.config import load_config, parse_overrides
from xtuner.errors import XTunerError
from xtuner.model.files.base import describe_base, read_base
from xtuner.model.files.weight_files import read_state_dict
from xtuner.registry import build
from xtuner.tools import chat
from xtuner.tools.support import answering
from xtuner.tools.support.trained_model import build_trained, load_assistant

CONNECTORS = "trainable=('fusion','projector','object_encoder')"
LORA = "llm_lora=dict(type=LoraConfig, r=2, init_lora_weights=False)"
CLIP_LORA = "visual_encoder_lora=dict(type=LoraConfig, r=2, init_lora_weights=False)"
EMBEDDING = "llm.model.embed_tokens.weight"
ROOT = Path(__file__).parents[3]


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(**model.data_preprocessor(tiny_batch(size=64)), mode="logits")


def arguments(command: str, words: list[str]) -> argparse.Namespace:
    """What the command line says to a command that answers."""
    parser = argparse.ArgumentParser()
    {"chat": chat, "serve": serve}[command].add_arguments(parser)
    return parser.parse_args(words)


class Workshop:
    """Trains in one step: a config in a folder of its own, and a checkpoint with what a run writes into it."""

    def __init__(self, folder: Path, trained: Trained) -> None:
        self.folder, self.trained = folder, trained
        shutil.copytree(ROOT / "configs", folder / "configs", ignore=shutil.ignore_patterns("__pycache__"))

    def config(self, name: str, *settings: str) -> str:
        lines = ["from mmengine.config import read_base", "from peft import LoraConfig", "", "with read_base():"]
        lines += [f"    from .configs.phi3.{self.trained.config} import *", "", *settings]
        (self.folder / f"{name}.py").write_text("\n".join(lines) + "\n")
        return str(self.folder / f"{name}.py")

    def load(self, config: str, **overrides: Any) -> Any:
        return load_config(config, {**parse_overrides(self.trained.options[1:]), **overrides})

    def train(self, config: str, start: str | Path | None, seed: int = 0) -> tuple[Path, torch.Tensor]:
        """Returns the checkpoint and the trained model's logits."""
        cfg = self.load(config, pretrained_pth=None if start is None else str(start))
        model = build(cfg.model)
        torch.manual_seed(seed + 1)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.02 * torch.randn_like(parameter))
        run = self.folder / "runs" / f"{Path(config).stem}{seed}"
        run.mkdir(parents=True)
        node, marks = cfg.model, model.base_marks()
        base = describe_base(node, node.pretrained_pth, model.from_checkpoint, model.unsaved_parts(), run)
        base["parts"] = {part: {**facts, "marks": marks[part]} for part, facts in base["parts"].items()}
        torch.save({"state_dict": model.state_dict(), "trainer": {"base": base}}, run / "iter_1.pth")
        return run / "iter_1.pth", logits(model)

    def tested(self, config: str, checkpoint: Path, base: Path | None = None, **overrides: Any) -> torch.Tensor:
        cfg = self.load(config, **overrides)
        path = None if base is None else str(base)
        return logits(build_trained(cfg, str(checkpoint), torch.device("cpu"), base=path))

    def convert(self, config: str, checkpoint: Path, target: str, *words: str) -> int:
        command = ["convert", "pth_to_hf", config, str(checkpoint), str(self.folder / target), *words]
        return main([*command, *self.trained.options])

    def exported(self, target: str) -> torch.Tensor:
        return logits(load_exported(self.folder / target).model)


@pytest.fixture
def workshop(tmp_path: Path, trained: Trained) -> Workshop:
    return Workshop(tmp_path, trained)


@pytest.fixture
def sft(workshop: Workshop) -> Path:
    """A checkpoint that holds a language model of its own."""
    return workshop.train(workshop.config("sft"), None)[0]


KINDS = {
    "frozen": [CONNECTORS],
    "lora": [LORA],
    "clip": [CONNECTORS, CLIP_LORA],
    "both": [CONNECTORS, LORA, CLIP_LORA],
}


class TestFromACheckpoint:
    def test_a_run_from_last_checkpoint_stands_on_what_that_named_then(self, workshop: Workshop, sft: Path) -> None:
        pointer = sft.parent / "last_checkpoint"
        pointer.write_text(str(sft))
        config = workshop.config("lora", LORA)
        checkpoint, expected = workshop.train(config, pointer)
        pointer.write_text(str(sft.parent / "iter_2.pth"))
        assert torch.equal(workshop.tested(config, checkpoint), expected)

    @pytest.mark.parametrize("kind", KINDS)
    def test_the_same_everywhere(self, workshop: Workshop, sft: Path, kind: str) -> None:
        """With the config as shipped, which does not name where the run began, and with the run's own."""
        config = workshop.config(kind, *KINDS[kind])
        checkpoint, expected = workshop.train(config, sft)
        assert torch.equal(workshop.tested(config, checkpoint), expected)
        assert torch.equal(workshop.tested(config, checkpoint, pretrained_pth=str(sft)), expected)
        overrides = parse_overrides(workshop.trained.options[1:])
        answers = load_assistant(config, str(checkpoint), torch.device("cpu"), overrides=overrides)
        assert torch.equal(logits(answers.model), expected)
        own = ["--cfg-options", f"pretrained_pth={sft}"]
        assert workshop.convert(config, checkpoint, "shipped") == workshop.convert(config, checkpoint, "own", *own) == 0
        # 1e-5: W x + B A x against (W + B A) x
        torch.testing.assert_close(workshop.exported("shipped"), expected, rtol=1e-4, atol=1e-5)
        shipped, ours = (read_state_dict(workshop.folder / name) for name in ("shipped", "own"))
        assert all(torch.equal(shipped[name], value) for name, value in ours.items())
        assert torch.equal(shipped[EMBEDDING], read_state_dict(sft)[EMBEDDING])

    def test_adapters_on_adapters(self, workshop: Workshop, sft: Path) -> None:
        """A run that goes on with another run's adapters stands on that one's base."""
        config = workshop.config("lora", LORA)
        first, _ = workshop.train(config, sft)
        second, expected = workshop.train(config, first, seed=1)
        assert torch.equal(workshop.tested(config, second), expected)
        assert workshop.convert(config, second, "hf") == 0
        assert torch.equal(read_state_dict(workshop.folder / "hf")[EMBEDDING], read_state_dict(sft)[EMBEDDING])

    @pytest.mark.parametrize("form", ["folder", "file"])
    def test_adapters_on_merged_adapters(self, workshop: Workshop, sft: Path, form: str) -> None:
        config = workshop.config("lora", LORA, CONNECTORS)
        first, _ = workshop.train(config, sft)
        assert workshop.convert(config, first, "merged") == 0
        start = workshop.folder / "merged"
        if form == "file":
            start = workshop.folder / "merged.pth"
            assert main(["convert", "hf_to_pth", str(workshop.folder / "merged"), str(start)]) == 0
            assert read_base(start) is not None and EMBEDDING in read_state_dict(start)
        second, expected = workshop.train(config, start, seed=1)
        assert torch.equal(workshop.tested(config, second), expected)
        assert workshop.convert(config, second, "hf") == 0
        torch.testing.assert_close(workshop.exported("hf"), expected, rtol=1e-4, atol=1e-5)

    def test_connectors_of_an_export_stand_on_its_language_model(self, workshop: Workshop, sft: Path) -> None:
        config = workshop.config("frozen", CONNECTORS)
        checkpoint, expected = workshop.train(config, sft)
        assert workshop.convert(config, checkpoint, "hf") == 0
        back = workshop.folder / "back.pth"
        assert main(["convert", "hf_to_pth", str(workshop.folder / "hf"), str(back)]) == 0
        assert EMBEDDING not in read_state_dict(back)
        assert torch.equal(workshop.tested(config, back), expected)

    def test_published_layout_holds_what_was_trained(self, workshop: Workshop, sft: Path) -> None:
        config = workshop.config("frozen", CONNECTORS)
        checkpoint, _ = workshop.train(config, sft)
        assert workshop.convert(config, checkpoint, "a.pth", "--layout", "original") == 0
        assert EMBEDDING not in read_state_dict(workshop.folder / "a.pth")


class TestMoved:
    @pytest.fixture(params=["lora", "frozen"])
    def run(self, workshop: Workshop, sft: Path, request: pytest.FixtureRequest) -> tuple[str, Path, torch.Tensor]:
        config = workshop.config(request.param, *KINDS[request.param])
        return config, *workshop.train(config, sft)

    def test_base_option(self, workshop: Workshop, sft: Path, run: tuple[str, Path, torch.Tensor]) -> None:
        config, checkpoint, expected = run
        moved = sft.rename(workshop.folder / "moved.pth")
        assert torch.equal(workshop.tested(config, checkpoint, moved), expected)
        assert torch.equal(workshop.tested(config, checkpoint, pretrained_pth=str(moved)), expected)
        assert workshop.convert(config, checkpoint, "hf", "--base", str(moved)) == 0
        torch.testing.assert_close(workshop.exported("hf"), expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("command", ["chat", "serve"])
    def test_base_option_of_what_answers(
        self, workshop: Workshop, sft: Path, run: tuple[str, Path, torch.Tensor], command: str
    ) -> None:
        config, checkpoint, expected = run
        moved = sft.rename(workshop.folder / "moved.pth")
        words = [config, "--checkpoint", str(checkpoint), "--device", "cpu", *workshop.trained.options]
        with pytest.raises(XTunerError, match="--base PATH"):
            answering.load_assistant(arguments(command, words))
        assistant = answering.load_assistant(arguments(command, [*words, "--base", str(moved)]))
        assert torch.equal(logits(assistant.model), expected)

    def test_all_runs_moved_together(self, workshop: Workshop, sft: Path, run: tuple[str, Path, torch.Tensor]) -> None:
        config, checkpoint, expected = run
        runs = (workshop.folder / "runs").rename(workshop.folder / "elsewhere")
        assert torch.equal(workshop.tested(config, runs / checkpoint.relative_to(workshop.folder / "runs")), expected)

    def test_gone(
        self,
        workshop: Workshop,
        sft: Path,
        run: tuple[str, Path, torch.Tensor],
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        config, checkpoint, _ = run
        sft.unlink()
        with pytest.raises(XTunerError, match=f"llm: other weights than those of iter_1.pth, expected at '{sft}', wh"):
            workshop.tested(config, checkpoint)
        assert workshop.convert(config, checkpoint, "hf") == 1
        assert "--base PATH" in capsys.readouterr().err and not (workshop.folder / "hf").exists()

    def test_changed(self, workshop: Workshop, sft: Path, run: tuple[str, Path, torch.Tensor]) -> None:
        config, checkpoint, _ = run
        other = torch.load(sft, weights_only=True)
        name = "llm.model.layers.1.mlp.up_proj.weight"
        other["state_dict"][name] += 1e-3
        torch.save(other, sft)
        with pytest.raises(XTunerError, match="builds on other weights than those found here:\n  - llm: "):
            workshop.tested(config, checkpoint)
        with pytest.raises(XTunerError, match="llm: "):
            workshop.tested(config, checkpoint, sft)
        assert workshop.convert(config, checkpoint, "hf") == 1

    def test_no_such_base(self, workshop: Workshop, run: tuple[str, Path, torch.Tensor]) -> None:
        with pytest.raises(XTunerError, match="--base nowhere.pth: there is no such checkpoint"):
            workshop.tested(run[0], run[1], Path("nowhere.pth"))


class TestFromFolders:
    def test_other_language_model_or_encoder(self, workshop: Workshop, tmp_path: Path) -> None:
        config = workshop.config("lora", LORA)
        checkpoint, expected = workshop.train(config, None)
        assert torch.equal(workshop.tested(config, checkpoint), expected)
        for setting, part in (("llm_name_or_path", "llm"), ("visual_encoder_name_or_path", "low_res_encoder")):
            original = Path(workshop.load(config)[setting])
            shutil.copytree(original, tmp_path / part)
            assert torch.equal(workshop.tested(config, checkpoint, **{setting: str(tmp_path / part)}), expected)
            self.change(tmp_path / part)
            with pytest.raises(XTunerError, match=f"  - {part}: other weights than those of {original.name}, expected"):
                workshop.tested(config, checkpoint, **{setting: str(tmp_path / part)})

    def change(self, folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        state = load_file(folder / "model.safetensors")
        save_file({name: value * 1.01 for name, value in state.items()}, folder / "model.safetensors", {"format": "pt"})

    def test_base_option_is_for_checkpoints(self, workshop: Workshop, sft: Path) -> None:
        config = workshop.config("lora", LORA)
        checkpoint, _ = workshop.train(config, None)
        with pytest.raises(XTunerError, match="builds on no checkpoint but on low_res_encoder from .*llm_name_or_path"):
            workshop.tested(config, checkpoint, sft)

    def test_training_on_adapters_of_another_base(self, workshop: Workshop, tmp_path: Path) -> None:
        config = workshop.config("lora", LORA)
        checkpoint, _ = workshop.train(config, None)
        llm = shutil.copytree(workshop.load(config).llm_name_or_path, tmp_path / "other")
        self.change(Path(llm))
        with pytest.raises(XTunerError, match="  - llm: other weights"):
            build(workshop.load(config, pretrained_pth=str(checkpoint), llm_name_or_path=str(llm)).model)


class TestWithoutMarks:
    def test_is_reported(self, workshop: Workshop, sft: Path, framework_log: list[logging.LogRecord]) -> None:
        """A checkpoint of before, or one that a tool has thinned out: with the run's config it is put together."""
        config = workshop.config("lora", LORA)
        checkpoint, expected = workshop.train(config, sft)
        torch.save({"state_dict": torch.load(checkpoint, weights_only=True)["state_dict"]}, checkpoint)
        assert torch.equal(workshop.tested(config, checkpoint, pretrained_pth=str(sft)), expected)
        assert torch.equal(workshop.tested(config, checkpoint, sft), expected)
        lines = [record.getMessage() for record in framework_log if "does not record" in record.getMessage()]
        assert len(lines) == 2 and all(f"its llm was trained on, so '{sft}' is used" in x for x in lines)

    def test_a_whole_checkpoint_takes_nothing_from_where_it_began(self, workshop: Workshop, sft: Path) -> None:
        assert torch.equal(
            workshop.tested(workshop.config("full"), sft, pretrained_pth="gone.pth"),
            workshop.tested(workshop.config("full"), sft),
        )


def test_adapters_for_a_config_without(workshop: Workshop, sft: Path) -> None:
    checkpoint, _ = workshop.train(workshop.config("lora", LORA, CONNECTORS), sft)
    plain = workshop.config("plain", CONNECTORS)
    with pytest.raises(XTunerError, match="holds adapters of llm, this config has none"):
        workshop.tested(plain, checkpoint)
    assert workshop.convert(plain, checkpoint, "hf") == 1


class TestMerge:
    def test_own_base_and_another(self, workshop: Workshop, sft: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert workshop.convert(workshop.config("full"), sft, "sft_hf") == 0
        config = workshop.config("lora", LORA, "trainable=()")
        checkpoint, expected = workshop.train(config, sft)
        assert workshop.convert(config, checkpoint, "lora_hf") == 0
        folder = workshop.folder
        command = ["convert", "merge"]
        adapters = str(folder / "lora_hf_adapters")
        assert main([*command, str(folder / "sft_hf"), adapters, str(folder / "merged")]) == 0
        torch.testing.assert_close(workshop.exported("merged"), expected, rtol=1e-4, atol=1e-5)
        raw = workshop.load(config).llm_name_or_path
        assert main([*command, raw, str(folder / "lora_hf_adapters" / "llm"), str(folder / "wrong")]) == 1
        assert "was trained on other weights" in capsys.readouterr().err
        assert not (folder / "wrong").exists()


def test_four_bit_adapters_on_a_checkpoint(workshop: Workshop, sft: Path) -> None:
    pytest.importorskip("bitsandbytes")
    config = workshop.config("qlora", LORA, "llm_quantization='4bit'")
    checkpoint, expected = workshop.train(config, sft)
    assert torch.equal(workshop.tested(config, checkpoint), expected)
    assert workshop.convert(config, checkpoint, "hf") == 0
    assert torch.equal(read_state_dict(workshop.folder / "hf")[EMBEDDING], read_state_dict(sft)[EMBEDDING])
    sft.unlink()
    with pytest.raises(XTunerError, match="  - llm: other weights"):
        workshop.tested(config, checkpoint)
