"""A loader's worker that the system kills: named, and what is done is saved."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from xtuner.engine.checkpoints.checkpoint import CheckpointFolder

ROOT = Path(__file__).parents[4]
pytestmark = pytest.mark.multi_process

RANK = """
import os, signal, sys
from pathlib import Path
import torch
from tests.xtuner.engine.toy import ToyDataset, train_toy
from xtuner.errors import XTunerError

class Deadly(ToyDataset):
    def __getitem__(self, index):
        worker = torch.utils.data.get_worker_info()
        mark = Path(sys.argv[1]) / "iter_3.pth"
        if worker is not None and worker.id == 1 and os.environ.get("RANK", "0") == sys.argv[3] and mark.exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)

try:
    launcher = None if sys.argv[2] == "1" else "pytorch"
    train_toy(Path(sys.argv[1]), launcher=launcher, dataset=Deadly, workers=2, max_iters=400, save_total_limit=None,
              delay=0.01)
except XTunerError as error:
    print(error, flush=True)
    sys.exit(1)
"""


@pytest.mark.parametrize(("ranks", "loser"), [(1, 0), (2, 1)])
def test_named_and_saved(tmp_path: Path, ranks: int, loser: int) -> None:
    work_dir = tmp_path / "run"
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1"}
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        environ["MASTER_PORT"] = str(listener.getsockname()[1])
    command = [sys.executable, "-c", RANK, str(work_dir), str(ranks), str(loser)]
    processes = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**environ, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    ends = [process.communicate(timeout=300) for process in processes]
    told = "\n".join(f"--- rank {rank}\n{said}\n{log[-3000:]}" for rank, (said, log) in enumerate(ends))
    for process, (said, log) in zip(processes, ends, strict=True):
        assert process.returncode == 1, told
        assert f"worker 1 of rank {loser} was killed (out of memory?)" in said, told
        step = int(re.findall(r"The state after step (\d+) is saved", said)[0])
        assert "Traceback" not in log and step >= 3
    latest = CheckpointFolder(work_dir).latest()
    assert latest is not None and latest.name == f"iter_{step}.pth"


HANGS = """
import ctypes, os, signal, sys
from xtuner.engine.processes.signals import second_signal_ends

signal.signal(signal.SIGINT, lambda *_: None)
with second_signal_ends():
    print("ready", flush=True)
    # holds the interpreter's main thread in the system, as a reduction that waits for another rank does
    libc = ctypes.CDLL(None)
    for _ in range(60):
        libc.sleep(60)
"""


def test_two_signals_end_a_long_operation_at_once() -> None:
    process = subprocess.Popen([sys.executable, "-c", HANGS], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    process.send_signal(signal.SIGINT)
    assert process.wait(5) == 128 + signal.SIGINT
    assert process.stderr is not None and b"SIGINT again: ending at once" in process.stderr.read()
