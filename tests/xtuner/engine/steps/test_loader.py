"""Workers of the loaders end with the process that they work for, and by no one else's signal."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
LEAVES_WORKERS = """
import os, signal
from xtuner.engine.steps.loader import SteadyLoader

batches = iter(SteadyLoader(list(range(1000)), num_workers=2))
next(batches)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:  # not the workers' parent
    os.killpg(0, signal.SIGTERM)
    os._exit(0)
os.wait()
print(sum(len(batch) for batch in batches), flush=True)
batches = iter(SteadyLoader(list(range(1000)), num_workers=2))
next(batches)
raise RuntimeError("ends with its workers at work")
"""


@pytest.mark.slow
@pytest.mark.multi_process
def test_workers_outlive_signals_but_not_their_process() -> None:
    started = time.monotonic()
    command = [sys.executable, "-c", LEAVES_WORKERS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, start_new_session=True)
    assert done.returncode == 1 and "ends with its workers at work" in done.stderr
    assert done.stdout.split() == ["999"]
    assert time.monotonic() - started < 60
