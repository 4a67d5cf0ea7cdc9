from __future__ import annotations

import logging
from pathlib import Path

import pytest

from xtuner.engine.assemble import _say_layout
from xtuner.engine.preflight import missing_files, missing_training_files, preflight
from xtuner.engine.processes.environment import adopt_slurm, infer_launcher
from xtuner.engine.steps.precision import Precision
from xtuner.engine.steps.settings import RuntimeSettings
from xtuner.engine.strategies.deepspeed_settings import engine_config, offloads_optimizer, read_deepspeed
from xtuner.errors import ProblemsError, XTunerError

SHIPPED = [f"deepspeed_zero{stage}{end}" for stage in (1, 2, 3) for end in ("", "_offload")]


def test_says_that_the_layout_does_not_suit_the_attention(framework_log: list[logging.LogRecord]) -> None:
    _say_layout({"pack": False, "llm": {"attn_implementation": "sdpa"}})
    _say_layout({"llm": {"attn_implementation": "flash_attention_2"}})  # cannot pack
    assert not framework_log
    _say_layout({"pack": False, "llm": {"attn_implementation": "flash_attention_2"}})
    assert "pack=True removes the padding" in framework_log[0].getMessage()


class TestRuntimeSettings:
    def test_minus_one_keeps_all(self) -> None:
        assert RuntimeSettings(save_total_limit=-1).save_total_limit is None

    @pytest.mark.parametrize(
        "bad",
        [dict(save_steps=0), dict(logging_interval=0), dict(save_total_limit=0), dict(visualizers=["tb"])],
    )
    def test_refuses(self, bad: dict[str, int]) -> None:
        with pytest.raises(ValueError, match="expected"):
            RuntimeSettings(**bad)  # type: ignore[arg-type]


class TestDeepSpeed:
    @pytest.mark.parametrize("name", SHIPPED)
    def test_shipped(self, name: str) -> None:
        settings = read_deepspeed(name)
        assert settings["zero_optimization"]["stage"] == int(name[14])
        assert offloads_optimizer(settings) == name.endswith("_offload")

    def test_unknown(self) -> None:
        with pytest.raises(XTunerError, match="Did you mean 'deepspeed_zero2'"):
            read_deepspeed("deepspeed_zero_2")

    def test_no_json(self, tmp_path: Path) -> None:
        (tmp_path / "x.json").write_text("{'a': 1}")
        with pytest.raises(XTunerError, match="is not JSON: line 1"):
            read_deepspeed(str(tmp_path / "x.json"))

    @pytest.mark.parametrize(
        "content",
        ['{"zero_optimization": {"stage": 7}}', '{"zero_optimisation": {"stage": 2}}', '{"zero_optimization": true}'],
    )
    def test_no_stage(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "x.json").write_text(content)
        with pytest.raises(XTunerError, match=r"stage is (7|None): expected one of \[1, 2, 3\]"):
            read_deepspeed(str(tmp_path / "x.json"))

    def test_config_wins_and_says_so(self, framework_log: list[logging.LogRecord]) -> None:
        given = {
            "zero_optimization": {"stage": 2, "offload_optimizer": None},
            "gradient_clipping": 5.0,
            "bf16": {"enabled": "auto"},
            "train_batch_size": 77,
            "optimizer": {"type": "Adam", "params": {"lr": 5}},
            "scheduler": {"type": "WarmupLR", "params": {"warmup_max_lr": 7}},
        }
        joined = engine_config(given, Precision("bf16"), None, 4, 2, on_gpu=False, world_size=3)
        # DeepSpeed clips at 1 where nothing is said
        assert joined["gradient_clipping"] == 0.0
        assert (joined["gradient_accumulation_steps"], joined["train_micro_batch_size_per_gpu"]) == (4, 2)
        assert joined["bf16"]["enabled"] and not joined["fp16"]["enabled"]
        assert not {"train_batch_size", "optimizer", "scheduler"} & set(joined)
        assert [record.getMessage() for record in framework_log] == [
            "The config replaces DeepSpeed's gradient_clipping 5.0 with 0.0.",
            "The config replaces DeepSpeed's train_batch_size 77 with 24.",
            "The config replaces DeepSpeed's optimizer with its own optimizer.",
            "The config replaces DeepSpeed's scheduler with its own schedule.",
        ]

    def test_no_pinned_memory_without_a_gpu(self) -> None:
        joined = engine_config(read_deepspeed("deepspeed_zero3_offload"), Precision("fp32"), 1.0, 1, 1, on_gpu=False)
        assert "pin_memory" not in joined["zero_optimization"]["offload_optimizer"]


class TestEnvironment:
    def test_torchrun_is_seen(self) -> None:
        assert infer_launcher({"TORCHELASTIC_RUN_ID": "1"}) == "pytorch"
        assert infer_launcher({"SLURM_NTASKS": "8"}) == "none"

    def test_slurm(self) -> None:
        environ = {
            "SLURM_PROCID": "9", "SLURM_NTASKS": "16", "SLURM_LOCALID": "1", "SLURM_NODELIST": "n[1-2]",
            "SLURM_JOB_ID": "20007", "MASTER_ADDR": "n1",
        }  # fmt: skip
        adopt_slurm(environ)
        found = [environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")]
        assert found == ["9", "16", "1", "n1", "20007"]

    def test_slurm_without_srun(self) -> None:
        with pytest.raises(XTunerError, match="srun"):
            adopt_slurm({})


class TestPreflight:
    def test_all_missing_files_at_once(self, tmp_path: Path) -> None:
        settings = {
            "data_path": [str(tmp_path), str(tmp_path / "none.json")],
            "box_json_path": None,
            "image_folder": str(tmp_path / "images"),
            "llm_name_or_path": "lmsys/vicuna-7b-v1.5",
            "visual_encoder_name_or_path": str(tmp_path / "clip"),
        }
        names = [problem.split(":")[0] for problem in missing_files(settings)]
        assert names == ["data_path", "image_folder", "visual_encoder_name_or_path"]

    def test_benchmarks_are_no_part_of_training(self, tmp_path: Path) -> None:
        settings = {"benchmark_folder": str(tmp_path / "none"), "data_path": str(tmp_path / "none.json")}
        assert len(missing_files(settings)) == 2
        assert [problem.split(":")[0] for problem in missing_training_files(settings)] == ["data_path"]

    def test_settings_that_nothing_uses_are_no_part(self, tmp_path: Path) -> None:
        settings = {"data_path": str(tmp_path / "none.json"), "box_json_path": str(tmp_path / "none.json")}
        unused = {**settings, "unused_settings": ("box_json_path",)}
        assert len(missing_training_files(settings)) == 2
        assert [problem.split(":")[0] for problem in missing_training_files(unused)] == ["data_path"]

    def test_nodes(self) -> None:
        with pytest.raises(ProblemsError, match="(?s)model: missing.*runtime: missing"):
            preflight({}, "empty")
