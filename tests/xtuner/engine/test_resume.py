"""A killed or stopped run that is resumed ends like an unbroken one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.xtuner.engine.toy import train_toy
from xtuner.engine.checkpoints.checkpoint import CheckpointFolder

ROOT = Path(__file__).parents[3]
pytestmark = [pytest.mark.multi_process, pytest.mark.slow]


def start(work_dir: Path, workers: int = 0) -> subprocess.Popen[bytes]:
    """Starts the toy as a process group of its own: 22 steps of 0.2 s, 11 an epoch, dropout on, saving every 3."""
    command = [
        sys.executable,
        "-m",
        "tests.xtuner.engine.toy",
        str(work_dir),
        "--delay",
        "0.05",
        "--dropout",
        "0.3",
        "--workers",
        str(workers),
    ]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, env=environ, start_new_session=True)


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None, f"ended with {process.returncode} before {path.name}"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def final_weights(work_dir: Path) -> dict[str, torch.Tensor]:
    return torch.load(work_dir / "iter_22.pth", weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    work_dir = tmp_path_factory.mktemp("unbroken")
    train_toy(work_dir, dropout=0.3, size=42)
    return final_weights(work_dir)


def test_killed_in_mid_epoch(tmp_path: Path, unbroken: dict[str, torch.Tensor]) -> None:
    process = start(tmp_path)
    wait_for(tmp_path / "iter_6.pth", process)
    time.sleep(0.25)  # into a later step
    process.kill()
    assert process.wait() == -signal.SIGKILL
    kept = CheckpointFolder(tmp_path).latest()
    assert kept is not None and kept.name in ("iter_6.pth", "iter_9.pth")

    # two workers: the order of samples does not depend on their number
    train_toy(tmp_path, resume="auto", dropout=0.3, size=42, workers=2)
    resumed = final_weights(tmp_path)
    assert set(resumed) == set(unbroken)
    assert all(torch.equal(resumed[name], tensor) for name, tensor in unbroken.items())


def test_sigterm_saves_and_says_so(tmp_path: Path, unbroken: dict[str, torch.Tensor]) -> None:
    process = start(tmp_path)
    wait_for(tmp_path / "iter_3.pth", process)
    process.terminate()
    assert process.wait(timeout=30) == 75
    latest = CheckpointFolder(tmp_path).latest()
    assert latest is not None and latest.name != "iter_22.pth"

    # what a crash in mid-writing leaves is not taken, nor is a cut-off file that the pointer names
    (tmp_path / ".iter_99.pth.123.tmp").write_bytes(b"half")
    (tmp_path / "iter_99.pth").write_bytes(latest.read_bytes()[:-100])
    (tmp_path / "last_checkpoint").write_text(str(tmp_path / "iter_99.pth"))
    assert CheckpointFolder(tmp_path).latest() == latest
    train_toy(tmp_path, resume="auto", dropout=0.3, size=42)
    assert all(torch.equal(final_weights(tmp_path)[name], tensor) for name, tensor in unbroken.items())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_every_process_of_the_job_saves_too(tmp_path: Path, number: signal.Signals) -> None:
    """Slurm signals the loader's workers as well, and so does Ctrl-C."""
    process = start(tmp_path, workers=2)
    wait_for(tmp_path / "iter_3.pth", process)
    os.killpg(process.pid, number)
    assert process.wait(timeout=30) == 75
    latest = CheckpointFolder(tmp_path).latest()
    assert latest is not None and latest.name not in ("iter_3.pth", "iter_22.pth")
