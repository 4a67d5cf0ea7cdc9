"""The kill harness, short: ``tools/benchmarks/kill_resume.py`` does ten kills of every mode."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.multi_process
def test_killed_runs_end_like_unbroken_ones() -> None:
    """One kill under ZeRO-2 with checkpoints written beside the training; test_resume.py has the plain runner."""
    script = ROOT / "tools" / "benchmarks" / "kill_resume.py"
    command = [sys.executable, str(script), "--kills", "1", "--modes", "zero2", "--async-save", "--seed", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "1 of 1 ended with the weights of the unbroken run" in done.stdout
