"""The ablation's table: settings of its variants, means and spreads, the order of what is run."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from tools.tiny_world import ablation
from tools.tiny_world.questions import KINDS
from xtuner.config import load_config, parse_overrides


def shares(value: float) -> dict[str, float]:
    return {kind: value for kind in (*KINDS, "overall")}


class TestVariants:
    @pytest.mark.parametrize("name", ablation.VARIANTS)
    @pytest.mark.parametrize("stage", ["pretrain", "sft"])
    def test_every_variant_is_a_valid_config(self, name: str, stage: str) -> None:
        variant = ablation.VARIANTS[name]
        cfg = load_config(f"{variant.config}_{stage}", parse_overrides(variant.options(stage)))
        parts = {part for part in cfg.model if cfg.model[part] is not None}
        assert ("object_encoder" in parts) == (name != "low_res")
        assert ("fusion" in parts) == (name not in ("low_res", "objects"))
        assert ("llm" in cfg.trainable) == (stage == "sft")
        assert set(cfg.trainable) - {"llm"} <= parts, "only what is there can be trained"


class TestRun:
    @pytest.fixture
    def commands(self, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
        """What would be run; trainings leave a checkpoint, evaluations their metrics."""
        ran: list[list[str]] = []

        def fake(arguments: Sequence[str], log: Path, threads: int) -> None:
            ran.append(list(arguments))
            folder = Path(arguments[arguments.index("--work-dir") + 1])
            if arguments[0] == "train":
                folder.mkdir()
                (folder / "last_checkpoint").write_text(f"{folder}/iter_9.pth\n")
            else:
                (folder / "tiny_world").mkdir(parents=True)
                metrics = {"overall": 0.5, "groups": {"kind": dict.fromkeys(KINDS, 0.5)}}
                (folder / "tiny_world" / "metrics.json").write_text(json.dumps(metrics))

        monkeypatch.setattr(ablation, "_xtuner", fake)
        return ran

    def test_sft_starts_from_the_pretraining(self, commands: list[list[str]], tmp_path: Path) -> None:
        results = ablation.run("objects", 3, tmp_path, 1, ["max_iters=7"])
        assert [command[0] for command in commands] == ["train", "train", "test"]
        assert "seed=3" in commands[0] and "max_iters=7" in commands[0]
        assert f"pretrained_pth={tmp_path}/objects/seed3/pretrain/iter_9.pth" in commands[1]
        assert commands[2][commands[2].index("--checkpoint") + 1] == f"{tmp_path}/objects/seed3/sft/iter_9.pth"
        assert results == {"objects": shares(0.5)}

    def test_the_full_model_is_also_asked_without_boxes(self, commands: list[list[str]], tmp_path: Path) -> None:
        results = ablation.run("conv_gate", 0, tmp_path, 1)
        assert list(results) == ["conv_gate", "conv_gate, boxes withheld"]
        assert "box_json_path=None" in commands[-1] and "box_json_path=None" not in commands[-2]

    def test_what_is_finished_is_not_run_again(self, commands: list[list[str]], tmp_path: Path) -> None:
        first = ablation.run("low_res", 0, tmp_path, 1)
        ran = len(commands)
        assert ablation.run("low_res", 0, tmp_path, 1) == first
        assert len(commands) == ran

    def test_a_failed_command_is_named_with_its_log(self, tmp_path: Path) -> None:
        with pytest.raises(SystemExit, match=r"exit code .*pretrain\.log"):
            ablation.run("low_res", 0, tmp_path, 1, ["no_such_setting=1"])


class TestReport:
    def test_mean_and_spread_worked_by_hand(self) -> None:
        summary = ablation.summarise({"low_res": [shares(0.4), shares(0.5), shares(0.6)], "objects": [shares(0.7)]})
        assert summary["low_res"]["overall"] == pytest.approx((0.5, 0.1))
        assert summary["objects"]["count"] == (0.7, 0.0)

    def test_table_and_plot(self, tmp_path: Path) -> None:
        summary = ablation.summarise(
            {"low_res": [shares(0.4), shares(0.5)], "conv_gate": [shares(0.9)], "concat": [shares(0.8)]}
        )
        printed = Console(file=io.StringIO(), width=150)
        ablation.write_table(summary, tmp_path / "table.md", printed)
        lines = (tmp_path / "table.md").read_text().splitlines()
        assert lines[2].startswith("| low resolution only | 45.0 ± 7.1 | 45.0 |")
        assert lines[3].startswith("| + objects + Conv-Gate | 90.0 ± 0.0 |")
        assert "45.0 ± 7.1" in printed.file.getvalue() and "[low ; high]" in printed.file.getvalue()
        ablation.plot(summary, 0.3, tmp_path / "plot.png")
        assert Image.open(tmp_path / "plot.png").width > 500
