"""Whole trainings on pictures that broke: two ranks that start on unprepared data, and a run that is past its limit."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from tools.tiny_world.make import make_world

ROOT = Path(__file__).parents[3]
BROKEN = ("train_00003", "train_00007", "train_00010")
pytestmark = [pytest.mark.slow, pytest.mark.multi_process]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to run the tiny configs in; three of its twelve training pictures do not decode."""
    folder = tmp_path_factory.mktemp("bad")
    make_world(folder / "work_dirs/tiny_world", 0, 12, Console(file=io.StringIO()), random_parts=True)
    for name in BROKEN:
        (path,) = (folder / "work_dirs/tiny_world/data/images").glob(f"{name}.*")
        path.write_bytes(path.read_bytes()[:40])
    return folder


def train(folder: Path, processes: int, **options: object) -> subprocess.CompletedProcess[str]:
    environ = {
        **os.environ,
        "NPROC_PER_NODE": str(processes),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "XTUNER_CACHE": str(folder / "cache"),
        "COLUMNS": "500",
    }
    settings = {"batch_size": 3, "max_epochs": 1, "logging_interval": 1, **options}
    command = [sys.executable, "-m", "xtuner", "train", "tiny_pretrain", "--work-dir", "run", "--start-anew"]
    command += ["--cfg-options", *(f"{name}={value}" for name, value in settings.items())]
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True)


def test_two_ranks_prepare_once_and_replace_what_is_broken(world: Path) -> None:
    done = train(world, 2, bad_sample_limit=0.01)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("Prepared '") == 1 and len(list((world / "cache/prepared").iterdir())) == 1
    assert (world / "run/iter_2.pth").is_file()
    lines = [json.loads(line) for line in (world / "run/bad_samples.jsonl").read_text().splitlines()]
    # one that would have stood for another is listed again
    assert {line["sample_id"] for line in lines} == set(BROKEN)
    assert {line["kind"] for line in lines} == {"picture does not decode"}
    total = len(lines)
    assert f"in total {total} (picture does not decode {total}); see run/bad_samples.jsonl" in done.stderr


def test_past_the_limit_the_run_stops(world: Path) -> None:
    # of 1000 samples or fewer, 2 may be bad
    done = train(world, 1, bad_sample_limit=0.002)
    assert done.returncode == 1
    message = done.stderr[done.stderr.rindex("3 of ") :]
    assert "samples could not be read (picture does not decode 3), more than bad_sample_limit=0.002 allows" in message
    assert "run/bad_samples.jsonl lists them" in message and "xtuner check-dataset CONFIG" in message
    assert "Traceback" not in done.stderr
