"""The shell scripts: syntax, help, and the commands they start, with a stub in the place of Python."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "script").glob("*.sh"))
LLM_SCRIPTS = {
    "train_vicuna7B.sh": "vicuna/fuse_vicuna7b",
    "train_vicuna13B.sh": "vicuna/fuse_vicuna13b",
    "train_llama3.sh": "llama3/fuse_llama3_8b",
    "train_phi3.sh": "phi3/fuse_phi3",
    "train_yi34b.sh": "yi/fuse_yi34b",
}
WITH_HELP = [*LLM_SCRIPTS, "train_pretrain.sh", "train_sft.sh", "test.sh", "chat.sh", "launch.sh"]
READ_BY_SCRIPTS = (
    *("ADDR", "CUDA_VISIBLE_DEVICES", "DEEPSPEED", "FORCE", "NNODES", "NODE_RANK", "NPROC", "PORT"),
    *("PRETRAIN", "SFT_OPTIONS", "SLURM", "SRUN"),
)
PRETRAIN, SFT = (f"fuse_vicuna7b_clip_L_14_336_{stage}_padding" for stage in ("pretrain", "sft"))

# Answers for stage_info.py; for `xtuner` it notes its arguments and leaves what a training leaves.
STUB = r"""#!/usr/bin/env bash
case "$*" in
    *--check-files*) echo "$*" >>"$STUB_LOG"; exit "${STUB_CHECK:-0}" ;;
    *stage_info.py*)
        for word in "$@"; do case $word in *.py | fuse_*) config=$word ;; esac; done
        basename "$config" .py
        echo deepspeed_zero2
        exit "${STUB_STATUS:-0}" ;;
esac
echo "NPROC_PER_NODE=${NPROC_PER_NODE:-} $*" >>"$STUB_LOG"
if [ "$3" = train ]; then
    mkdir -p "$6"
    echo elsewhere/iter_4.pth >"$6/last_checkpoint"
    touch "$6/iter_4.pth"
    case $4 in *"${STUB_FAILS:-none}"*) exit 7 ;; esac
fi
"""


class Sandbox:
    """Runs scripts with a stub of Python, without GPUs and without Slurm unless asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.work_dir = folder / "runs"
        self.log = folder / "log"
        self.bin.mkdir()
        self.add_program("python-stub", STUB)
        self.add_program("nvidia-smi", "#!/bin/sh\nexit 9\n")

    def add_program(self, name: str, text: str) -> None:
        path = self.bin / name
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)

    def add_gpus(self, count: int) -> None:
        listing = "\n".join(f"echo 'GPU {index}: NVIDIA H100'" for index in range(count))
        self.add_program("nvidia-smi", f"#!/bin/sh\n{listing}\n")

    def run(self, script: str, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", str(ROOT / "script" / script), *arguments],
            env={**self.environ(), **environ},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def environ(self) -> Mapping[str, str]:
        ours = (
            "DEEPSPEED",
            "FORCE",
            "PRETRAIN_OPTIONS",
            "SFT_OPTIONS",
            "PRETRAINED_PTH",
            "CUDA_VISIBLE_DEVICES",
        )
        inherited = {
            key: value
            for key, value in os.environ.items()
            if key not in ours and not key.startswith(("SLURM", "NPROC", "NNODES", "NODE_RANK", "ADDR", "PORT"))
        }
        return {
            **inherited,
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "PYTHON": str(self.bin / "python-stub"),
            "WORK_DIR": str(self.work_dir),
            "STUB_LOG": str(self.log),
        }

    def commands(self) -> list[str]:
        return self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() else []


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    return Sandbox(tmp_path)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_syntax(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_all_scripts_are_there() -> None:
    assert set(WITH_HELP) <= {path.name for path in SCRIPTS}


@pytest.mark.parametrize("script", WITH_HELP)
def test_help(script: str, sandbox: Sandbox) -> None:
    result = sandbox.run(script, "--help")
    assert result.returncode == 0
    assert f"bash script/{script}" in result.stdout
    assert "set -euo" not in result.stdout
    if script.startswith("train_"):
        assert "DEEPSPEED" in result.stdout and "--dry-run" in result.stdout
    assert sandbox.commands() == []


class TestDryRun:
    @pytest.mark.parametrize(("script", "prefix"), LLM_SCRIPTS.items())
    def test_all_commands_in_order(self, script: str, prefix: str, sandbox: Sandbox) -> None:
        for stage in ("pretrain", "sft"):
            assert (ROOT / f"configs/{prefix}_clip_L_14_336_{stage}_padding.py").exists()
        result = sandbox.run(script, "--dry-run")
        check, pretrain, sft, test = result.stdout.splitlines()
        assert check.rstrip().endswith("--check-files")
        assert f"-m xtuner train configs/{prefix}_clip_L_14_336_pretrain_padding.py" in pretrain
        assert f"-m xtuner train configs/{prefix}_clip_L_14_336_sft_padding.py" in sft
        assert "--cfg-options pretrained_pth=NEWEST_CHECKPOINT_OF_" in sft
        assert f"-m xtuner test configs/{prefix}_clip_L_14_336_sft_padding.py" in test
        assert result.returncode == 0 and sandbox.commands() == [] and not sandbox.work_dir.exists()

    def test_nothing_is_named_after_a_cluster(self) -> None:
        text = "".join(path.read_text(encoding="utf-8") for path in SCRIPTS)
        assert "--partition" not in text and "quotatype" not in text


class TestLaunching:
    def command(self, sandbox: Sandbox, **environ: str) -> str:
        result = sandbox.run("train_pretrain.sh", PRETRAIN, "--dry-run", **environ)
        assert result.returncode == 0, result.stderr
        return result.stdout

    def test_one_cpu_process_without_deepspeed(self, sandbox: Sandbox) -> None:
        command = self.command(sandbox)
        assert command.startswith("env NPROC_PER_NODE=1 ")
        assert "--deepspeed" not in command

    def test_a_process_per_gpu_with_the_deepspeed_of_the_config(self, sandbox: Sandbox) -> None:
        sandbox.add_gpus(4)
        command = self.command(sandbox)
        assert command.startswith("env NPROC_PER_NODE=4 ")
        assert "--deepspeed deepspeed_zero2" in command

    def test_visible_devices_and_variables_win(self, sandbox: Sandbox) -> None:
        sandbox.add_gpus(4)
        assert "NPROC_PER_NODE=2 " in self.command(sandbox, CUDA_VISIBLE_DEVICES="0,3")
        assert "NPROC_PER_NODE=3 " in self.command(sandbox, NPROC_PER_NODE="3")
        assert "NPROC_PER_NODE=1 " in self.command(sandbox, CUDA_VISIBLE_DEVICES="")

    def test_empty_deepspeed_means_none_and_a_name_wins(self, sandbox: Sandbox) -> None:
        sandbox.add_gpus(2)
        assert "--deepspeed" not in self.command(sandbox, DEEPSPEED="")
        assert "--deepspeed deepspeed_zero3" in self.command(sandbox, DEEPSPEED="deepspeed_zero3")

    def test_several_machines(self, sandbox: Sandbox) -> None:
        command = self.command(sandbox, NNODES="2", NODE_RANK="1", ADDR="10.0.0.1", PORT="29501")
        assert "NNODES=2 NODE_RANK=1 ADDR=10.0.0.1 PORT=29501 " in command

    def test_slurm(self, sandbox: Sandbox) -> None:
        sandbox.add_program("srun", "#!/bin/sh\n")
        command = self.command(sandbox, SLURM_JOB_ID="1", SRUN_ARGS="--ntasks-per-node=8 --gres=gpu:8")
        assert command.startswith("srun --kill-on-bad-exit=1 --ntasks-per-node=8 --gres=gpu:8 ")
        assert "--deepspeed deepspeed_zero2" in command and command.rstrip().endswith("--launcher slurm")

    @pytest.mark.parametrize(("left", "code"), [("printf 75 >$XTUNER_EXIT_CODE_FILE", 75), (":", 143)])
    def test_exit_code_of_the_ranks_comes_through_srun(self, sandbox: Sandbox, left: str, code: int) -> None:
        """A rank that leaves with 75 makes srun kill the others and end with the code of that."""
        sandbox.add_program("srun", f"#!/bin/sh\n{left}\nexit 143\n")
        for _ in range(2):
            assert sandbox.run("train_pretrain.sh", PRETRAIN, SLURM_JOB_ID="1").returncode == code
            assert not list(sandbox.work_dir.glob(".exit_code*"))

    def test_launch_runs_any_command(self, sandbox: Sandbox) -> None:
        sandbox.add_gpus(2)
        result = sandbox.run("launch.sh", "--dry-run", "test", "a.py", "--limit", "3")
        assert result.stdout.rstrip().endswith("-m xtuner test a.py --limit 3")
        assert result.stdout.startswith("env NPROC_PER_NODE=2 ")


class TestStages:
    def test_pretrain_as_typed_in_the_readme(self, sandbox: Sandbox) -> None:
        config = f"mg_llava/config/vicuna/{PRETRAIN}.py"
        extra = ("--seed", "1", "--cfg-options", "lr=1e-4", "max_iters=2")
        result = sandbox.run("train_pretrain.sh", config, "--", *extra)
        assert result.returncode == 0, result.stderr
        folder = sandbox.work_dir / PRETRAIN
        expected = f"train {config} --work-dir {folder} --seed 1 --cfg-options lr=1e-4 max_iters=2"
        assert sandbox.commands() == [f"NPROC_PER_NODE=1 -m xtuner {expected}"]

    def test_whole_run_then_nothing_to_do(self, sandbox: Sandbox) -> None:
        result = sandbox.run("train_vicuna7B.sh", SFT_OPTIONS="batch_size=2", PRETRAIN_OPTIONS="batch_size=4")
        assert result.returncode == 0, result.stderr
        check, pretrain, sft, test = sandbox.commands()
        assert check.endswith("_sft_padding.py --check-files --cfg-options batch_size=2")
        assert pretrain.endswith("--cfg-options batch_size=4")
        assert f"pretrained_pth={sandbox.work_dir}/{PRETRAIN}/iter_4.pth batch_size=2" in sft
        assert f"--checkpoint {sandbox.work_dir}/{SFT}/iter_4.pth" in test
        again = sandbox.run("train_vicuna7B.sh", SFT_OPTIONS="batch_size=2", PRETRAIN_OPTIONS="batch_size=4")
        assert again.returncode == 0 and again.stderr.count("not trained again") == 2
        assert sandbox.commands()[4:] == [check, test]  # xtuner test itself knows what it has answered

    def test_other_settings_than_the_finished_run(self, sandbox: Sandbox) -> None:
        sandbox.run("train_pretrain.sh", PRETRAIN)
        other = ("train_pretrain.sh", PRETRAIN, "--", "--cfg-options", "lr=1")
        result = sandbox.run(*other)
        assert result.returncode == 1 and "other settings" in result.stderr
        assert sandbox.run(*other, FORCE="1").returncode == 0
        assert len(sandbox.commands()) == 2 and "--resume" not in sandbox.commands()[1]
        # the former run is moved aside, not written over
        assert sandbox.commands()[1].endswith("--start-anew") and "--start-anew" not in sandbox.commands()[0]

    @pytest.mark.parametrize("word", [("--resume", "auto"), ("--start-anew",)])
    def test_a_given_word_about_the_former_run_wins(self, sandbox: Sandbox, word: tuple[str, ...]) -> None:
        sandbox.run("train_pretrain.sh", PRETRAIN, STUB_FAILS="_pretrain_")
        assert sandbox.run("train_pretrain.sh", PRETRAIN, "--", *word, FORCE="1").returncode == 0
        command = sandbox.commands()[-1]
        assert command.count("--resume") + command.count("--start-anew") == 1 and word[0] in command

    def test_killed_before_its_first_pointer_it_goes_on(self, sandbox: Sandbox) -> None:
        (sandbox.work_dir / PRETRAIN).mkdir(parents=True)
        (sandbox.work_dir / PRETRAIN / "iter_3.pth").touch()
        assert "--resume auto" in sandbox.run("train_pretrain.sh", PRETRAIN, "--dry-run").stdout

    def test_failed_forced_training_is_not_finished(self, sandbox: Sandbox) -> None:
        sandbox.run("train_pretrain.sh", PRETRAIN)
        assert sandbox.run("train_pretrain.sh", PRETRAIN, FORCE="1", STUB_FAILS="_pretrain_").returncode == 7
        assert sandbox.run("train_pretrain.sh", PRETRAIN).returncode == 0
        assert len(sandbox.commands()) == 3 and sandbox.commands()[2].endswith("--resume auto")

    def test_interrupted_stage_resumes_and_sft_waits(self, sandbox: Sandbox) -> None:
        result = sandbox.run("train_vicuna7B.sh", STUB_FAILS="_pretrain_")
        assert result.returncode == 7 and len(sandbox.commands()) == 2
        assert sandbox.run("train_vicuna7B.sh").returncode == 0
        assert sandbox.commands()[3].endswith("--resume auto")

    def test_sft_finds_the_pretrain_checkpoint(self, sandbox: Sandbox) -> None:
        alone = sandbox.run("train_sft.sh", SFT)
        assert alone.returncode == 1 and "train" in alone.stderr and PRETRAIN in alone.stderr
        sandbox.run("train_pretrain.sh", PRETRAIN)
        assert sandbox.run("train_sft.sh", SFT).returncode == 0
        assert f"pretrained_pth={sandbox.work_dir}/{PRETRAIN}/iter_4.pth" in sandbox.commands()[-1]

    def test_a_given_checkpoint_wins(self, sandbox: Sandbox) -> None:
        result = sandbox.run("train_sft.sh", SFT, "--dry-run", PRETRAINED_PTH="mine.pth")
        assert "pretrained_pth=mine.pth" in result.stdout

    def test_bad_config_stops_before_training(self, sandbox: Sandbox) -> None:
        assert sandbox.run("train_vicuna7B.sh", STUB_STATUS="1").returncode == 1
        assert sandbox.commands() == []

    @pytest.mark.parametrize("arguments", [(), ("a", "b", "c"), ("a", "--typo")])
    @pytest.mark.parametrize("script", ["train_pretrain.sh", "train_sft.sh", "test.sh"])
    def test_wrong_arguments(self, script: str, arguments: tuple[str, ...], sandbox: Sandbox) -> None:
        result = sandbox.run(script, *arguments)
        assert result.returncode == 1 and "--help" in result.stderr


class TestMissingBenchmarks:
    def test_checked_before_training_and_told_by_the_exit_code(self, sandbox: Sandbox) -> None:
        result = sandbox.run("train_vicuna7B.sh", STUB_CHECK="3")
        assert result.returncode == 3 and "skipped" in result.stderr
        assert [command.split("-m xtuner ")[1].split()[0] for command in sandbox.commands()] == [
            *("test", "train", "train", "test")
        ]

    def test_allowed(self, sandbox: Sandbox) -> None:
        result = sandbox.run("train_vicuna7B.sh", "--allow-missing", STUB_CHECK="3")
        assert result.returncode == 0 and len(sandbox.commands()) == 4

    def test_other_failures_of_the_check_stop(self, sandbox: Sandbox) -> None:
        assert sandbox.run("train_vicuna7B.sh", STUB_CHECK="1").returncode == 1
        assert len(sandbox.commands()) == 1

    def test_test_script_passes_arguments_on(self, sandbox: Sandbox) -> None:
        extra = ("--limit", "5", "--cfg-options", "max_length=9")
        result = sandbox.run("test.sh", SFT, "a.pth", "--", *extra, STUB_CHECK="3")
        assert result.returncode == 3, result.stderr
        check, test = sandbox.commands()
        assert check.endswith("--limit 5 --check-files --cfg-options max_length=9")
        assert "--checkpoint a.pth" in test
        assert test.endswith("--limit 5 --allow-missing --cfg-options max_length=9")
