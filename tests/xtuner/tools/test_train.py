from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from mmengine.config import ConfigDict

from xtuner.cli import main
from xtuner.errors import XTunerError
from xtuner.tools.support.out_of_memory import explain_out_of_memory
from xtuner.tools.train import EXIT_INTERRUPTED, _to_argv, add_arguments

ROOT = Path(__file__).parents[3]
CONFIG = """
from tests.xtuner.engine.toy import ToyDataset, ToyModel
from xtuner.data.batches.samplers import ShuffledBatchSampler
from xtuner.engine.steps.optim import build_optimizer
from xtuner.engine.steps.schedule import WarmupCosine
from xtuner.engine.steps.settings import RuntimeSettings

batch_size = 2
seed = 1
max_iters = 3
model = dict(type=ToyModel)
delay = 0.0
train_dataset = dict(type=ToyDataset, delay="${delay}")
train_dataloader = dict(batch_size="${batch_size}", num_workers=0, sampler=dict(type=ShuffledBatchSampler))
optimizer = dict(type=build_optimizer, lr=0.01)
schedule = dict(type=WarmupCosine, max_iters="${max_iters}")
runtime = dict(type=RuntimeSettings, seed="${seed}", logging_interval=1)
"""


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(words)


def test_arguments_survive_the_relaunch() -> None:
    args = parse("c.py", "--resume", "--deepspeed", "deepspeed_zero2", "--seed", "3", "--cfg-options", "a=1", "b=[2]")
    again = parse(*_to_argv(args)[1:])
    assert again.launcher == "pytorch"
    again.launcher = args.launcher
    assert again == args and args.resume == "auto"


def test_out_of_memory_says_what_to_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = ConfigDict(model=dict(), train_dataloader=dict(batch_size=8), optimizer=dict(accumulative_counts=2))
    monkeypatch.setattr(
        "xtuner.tools.support.memory.build_parts", lambda cfg: {"head": torch.nn.Linear(1 << 14, 1 << 14)}
    )
    with pytest.raises(XTunerError) as caught, explain_out_of_memory(cfg, "deepspeed_zero2", 4):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nmore")
    message = str(caught.value)
    assert "Tried to allocate 2.00 GiB\nEstimated need per GPU: " in message
    assert "weights 0.5" in message  # 2^28 weights in bf16
    assert "batch_size=4 accumulative_counts=4" in message and "deepspeed_zero3:" in message


class TestFinished:
    @pytest.fixture
    def finished(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        (tmp_path / "toy_run.py").write_text(CONFIG)
        monkeypatch.chdir(tmp_path)
        assert main(["train", "toy_run.py"]) == 0
        return tmp_path / "work_dirs" / "toy_run"

    def test_it_is_told_before_the_model_is_built(
        self, finished: Path, monkeypatch: pytest.MonkeyPatch, framework_log: list[logging.LogRecord]
    ) -> None:
        def refuse(*_: object) -> None:
            raise AssertionError("the model was built")

        monkeypatch.setattr("xtuner.engine.assemble._build_model", refuse)
        framework_log.clear()
        assert main(["train", "toy_run.py", "--resume"]) == 0
        assert [record.getMessage() for record in framework_log] == [
            "work_dirs/toy_run is finished (step 3): nothing to do"
        ]

    def test_one_with_steps_left_goes_on(self, finished: Path) -> None:
        assert main(["train", "toy_run.py", "--resume", "--cfg-options", "max_iters=5"]) == 0
        assert (finished / "last_checkpoint").read_text().endswith("iter_5.pth")

    def test_a_damaged_one_is_named(self, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = finished / "iter_3.pth"
        content = bytearray(path.read_bytes())
        weight = torch.load(path, weights_only=True)["state_dict"]["head.0.weight"]
        content[content.find(weight.numpy().tobytes()) + 5] ^= 1
        path.write_bytes(content)
        assert main(["train", "toy_run.py", "--resume", str(path)]) == 1
        assert "is damaged" in capsys.readouterr().err

    def test_another_run_is_named(self, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["train", "toy_run.py", "--resume", "--seed", "2"]) == 1
        assert "seed 1, this run has 2" in capsys.readouterr().err


def test_profile_leaves_a_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "toy_run.py").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    assert main(["train", "toy_run.py", "--profile", "2", "--cfg-options", "max_iters=4"]) == 0
    folder = tmp_path / "work_dirs" / "toy_run" / "profile"
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    names = [event["name"] for event in events if "name" in event]
    steps = {name for name in names if name.startswith("ProfilerStep#")}
    assert len(steps) == 2 and "aten::addmm" in names
    assert "aten::addmm" in (folder / "operators.txt").read_text()


def test_mistakes_are_named_before_the_data_are_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "toy_run.py").write_text(CONFIG.replace("lr=0.01", 'lr=0.01, precision="bf_16"'))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tests.xtuner.engine.toy.ToyDataset.__init__", lambda self, **_: pytest.fail("built"))
    words = ["--deepspeed", "deepspeed_zero_3", "--resume", "none.pth", "--cfg-options", "max_iters=0"]
    assert main(["train", "toy_run.py", *words]) == 1
    said = capsys.readouterr().err
    assert "4 problems in what toy_run needs" in said
    for part in ("Did you mean 'deepspeed_zero3'", "none.pth: no such checkpoint", "max_iters is 0", "'bf_16'"):
        assert part in said


@pytest.mark.slow
@pytest.mark.multi_process
def test_two_processes_by_environment(tmp_path: Path) -> None:
    (tmp_path / "toy_run.py").write_text(CONFIG)
    environ = {**os.environ, "NPROC_PER_NODE": "2", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "xtuner",
        "train",
        str(tmp_path / "toy_run.py"),
        "--cfg-options",
        "batch_size=3",
    ]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "6 per step" in done.stderr  # 2 processes x the 3 that was asked for
    work_dir = tmp_path / "work_dirs" / "toy_run"
    assert (work_dir / "iter_3.pth").is_file()
    assert "'${batch_size}'" in (work_dir / "toy_run.py").read_text().replace('"', "'")
    assert "batch_size=3" in (work_dir / "toy_run_resolved.py").read_text()
    assert list(work_dir.glob("*/vis_data/events.*")) and list(work_dir.glob("*/*.log"))


def start_two(folder: Path, *words: str) -> subprocess.Popen[str]:
    """Starts two slow ranks and returns when they have made two steps."""
    (folder / "toy_run.py").write_text(CONFIG)
    environ = {**os.environ, "NPROC_PER_NODE": "2", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "xtuner", "train", str(folder / "toy_run.py"), *words]
    options = ["--cfg-options", "delay=0.05", "max_iters=2000"]
    process = subprocess.Popen([*command, *options], cwd=folder, env=environ, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "step 2/" in line or "Resumed" in line:
            return process
    raise AssertionError(f"ended with {process.wait()} before its second step")


@pytest.mark.slow
@pytest.mark.multi_process
class TestEnds:
    """What ends a run on two ranks, and the exit code that comes through the launcher."""

    @pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGINT])
    def test_signal_saves_and_says_so(self, tmp_path: Path, number: signal.Signals) -> None:
        process = start_two(tmp_path)
        process.send_signal(number)
        assert process.wait(timeout=60) == EXIT_INTERRUPTED
        assert (tmp_path / "work_dirs" / "toy_run" / "last_checkpoint").is_file()

    def test_dead_rank_ends_all(self, tmp_path: Path) -> None:
        process = start_two(tmp_path)
        (torchrun,) = psutil.Process(process.pid).children()
        ranks = torchrun.children()
        started = time.monotonic()
        ranks[1].kill()
        assert process.wait(timeout=60) not in (0, EXIT_INTERRUPTED)
        assert time.monotonic() - started < 60
        assert not any(rank.is_running() and rank.status() != psutil.STATUS_ZOMBIE for rank in ranks)
