"""The automatic cache: made once, also after a process that was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from xtuner.data.store.cache import CacheError, build_once, lock, publish, remember, unfinished_name

BUILDING = """
import sys, time
from pathlib import Path
from xtuner.data.store.cache import build_once, unfinished_name

target = Path(sys.argv[1])

def build():
    unfinished = unfinished_name(target)
    unfinished.mkdir(parents=True)
    (unfinished / "half").touch()
    time.sleep(60)

build_once(target, build)
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XTUNER_CACHE", str(tmp_path / "cache"))


@pytest.mark.multi_process
def test_what_a_killed_process_left_goes(tmp_path: Path) -> None:
    target = tmp_path / "made" / "target"
    process = subprocess.Popen([sys.executable, "-c", BUILDING, str(target)])
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("made/.target.*/half")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    other = target.with_name(".target2.kept")
    other.mkdir()

    def build() -> None:
        unfinished = unfinished_name(target)
        unfinished.mkdir()
        publish(unfinished, target)

    build_once(target, build)
    assert sorted(path.name for path in target.parent.iterdir()) == [".target2.kept", "target"]


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XTUNER_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(CacheError, match="set XTUNER_CACHE"), lock(tmp_path / "target"):
        pass
    remember(tmp_path / "file" / "mark")  # says so and goes on
