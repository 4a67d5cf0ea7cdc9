from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

from xtuner.tools.train import _to_argv, add_arguments

ROOT = Path(__file__).parents[3]
CONFIG = """
from tests.xtuner.engine.toy import ToyDataset, ToyModel
from xtuner.data.samplers import ShuffledBatchSampler
from xtuner.engine.optim import build_adamw
from xtuner.engine.schedule import WarmupCosine
from xtuner.engine.settings import RuntimeSettings

batch_size = 2
seed = 1
max_iters = 3
model = dict(type=ToyModel)
train_dataset = dict(type=ToyDataset)
train_dataloader = dict(batch_size="${batch_size}", num_workers=0, sampler=dict(type=ShuffledBatchSampler))
optimizer = dict(type=build_adamw, lr=0.01)
schedule = dict(type=WarmupCosine, max_iters="${max_iters}")
runtime = dict(type=RuntimeSettings, seed="${seed}")
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
