"""Evaluation in real processes: killed and resumed, shared by two."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.mg_llava.evaluation.world import FACTS, bench, make_world, runner, seeded_assistant

ROOT = Path(__file__).parents[4]
MODULE = "tests.mg_llava.evaluation.world"
QUESTIONS = 21
pytestmark = [pytest.mark.multi_process, pytest.mark.slow]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = [f"Is it {'w1 ' * (number % 5)}w{number}" for number in range(QUESTIONS)]
    return make_world(tmp_path_factory.mktemp("world"), texts)


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of one unbroken process, one question at a time."""
    folder = tmp_path_factory.mktemp("whole")
    runner(seeded_assistant(folder / "parts"), 1).run(bench(world), folder / "out", FACTS)
    return folder / "out"


def environ() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def test_killed_and_resumed_ends_with_the_same_file(world: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", MODULE, str(world), str(out)]
    process = subprocess.Popen([*command, "--delay", "0.3"], cwd=ROOT, env=environ(), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while _lines(out) < 4:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert _lines(out) < QUESTIONS and not (out / "metrics.json").exists()
    subprocess.run(command, cwd=ROOT, env=environ(), check=True, capture_output=True)
    for name in ("predictions.jsonl", "metrics.json"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()


def test_two_processes_share_the_work(world: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launch, "-m", MODULE, str(world), str(out), "--delay", "0.1"]
    done = subprocess.run(command, cwd=ROOT, env=environ(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    # taken as they come, in lockstep, and stopped by one rank and taken up again
    for name in ("out", "out_locked", "out_cut"):
        assert (tmp_path / name / "predictions.jsonl").read_bytes() == (whole / "predictions.jsonl").read_bytes()
        assert (tmp_path / name / "metrics.json").read_bytes() == (whole / "metrics.json").read_bytes()
        assert not list((tmp_path / name).glob("*rank*"))


def _lines(folder: Path) -> int:
    path = folder / "predictions.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_the_whole_is_whole(whole: Path) -> None:
    rows = [json.loads(line) for line in (whole / "predictions.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"q{number}" for number in range(QUESTIONS)]
    assert len({row["output"] for row in rows}) > 1
