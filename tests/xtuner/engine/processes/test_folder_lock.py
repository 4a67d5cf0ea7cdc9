"""A folder's lock: who wins, who is dead, and that no machine's clock matters."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from xtuner.engine.processes import folder_lock
from xtuner.engine.processes.folder_lock import LOCK_FILE, FolderLock, Holder, locked
from xtuner.errors import XTunerError

ELSEWHERE = Holder("gpu07", "other-boot pid:[1]", 4711, 3.0, "99", "0", 0, "2026-01-01 00:00:00", "ab" * 16)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refreshes every 0.1 s, stale after 0.6 s."""
    monkeypatch.setattr(folder_lock, "REFRESH_SECONDS", 0.1)
    monkeypatch.setattr(folder_lock, "STALE_SECONDS", 0.6)


def put(folder: Path, holder: Holder) -> Path:
    path = folder / LOCK_FILE
    path.write_text(json.dumps(dataclasses.asdict(holder)))
    return path


@pytest.fixture
def other_process(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Holds the lock of `tmp_path`."""
    code = (
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from xtuner.engine.processes.folder_lock import locked\n"
        "with locked(Path(sys.argv[1]), os.environ):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_leaves_nothing(tmp_path: Path) -> None:
    with locked(tmp_path / "new", {}):
        assert [path.name for path in (tmp_path / "new").iterdir()] == [LOCK_FILE]
    assert not list((tmp_path / "new").iterdir())


def test_a_live_run_refuses_at_once_and_a_killed_one_is_taken_over(
    tmp_path: Path, other_process: subprocess.Popen[str]
) -> None:
    with pytest.raises(XTunerError, match=rf"in use by another run: process {other_process.pid} on .*since 20"):
        FolderLock(tmp_path, {}).take()
    other_process.send_signal(signal.SIGKILL)
    # not waited for: a zombie is dead too
    deadline = time.monotonic() + 10
    while folder_lock._start_of(other_process.pid) is not None:  # until the system has ended it
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with locked(tmp_path, {}):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()


def test_another_machine_is_dead_when_it_gives_no_sign(tmp_path: Path, quick: None) -> None:
    put(tmp_path, ELSEWHERE)
    started = time.monotonic()
    with locked(tmp_path, {}):
        assert 0.5 < time.monotonic() - started < 5


@pytest.mark.parametrize("skew", [-3600, 3600])
def test_clocks_of_machines_do_not_matter(
    tmp_path: Path, quick: None, skew: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The holder lives on, and refreshes by the disk's time; ours is an hour off."""
    path = put(tmp_path, ELSEWHERE)
    ended = threading.Event()

    def refresh() -> None:
        while not ended.wait(0.1):
            os.utime(path)

    thread = threading.Thread(target=refresh)
    thread.start()
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + skew)
    try:
        with pytest.raises(XTunerError, match=r"process 4711 on gpu07, Slurm job 99, since 2026-01-01"):
            FolderLock(tmp_path, {}).take()
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize(
    ("environ", "at_once"),
    [
        ({"SLURM_JOB_ID": "99", "SLURM_RESTART_COUNT": "1", "SLURM_STEP_ID": "3"}, True),
        ({"SLURM_JOB_ID": "99", "SLURM_STEP_ID": "0"}, True),
        ({"SLURM_JOB_ID": "99", "SLURM_STEP_ID": "1"}, False),  # another step of the same job
        ({"SLURM_JOB_ID": "98", "SLURM_STEP_ID": "0"}, False),
        ({}, False),
    ],
)
def test_the_same_job_requeued_takes_over_at_once(tmp_path: Path, environ: dict[str, str], at_once: bool) -> None:
    put(tmp_path, ELSEWHERE)
    assert ELSEWHERE.is_alive(Holder.here(environ)) is (False if at_once else None)
    if at_once:
        with locked(tmp_path, environ):
            assert Holder.read(tmp_path / LOCK_FILE) != ELSEWHERE


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": "x"}', "\x00"])
def test_a_cut_lock_is_told_by_its_age(tmp_path: Path, quick: None, content: str) -> None:
    (tmp_path / LOCK_FILE).write_text(content)
    with locked(tmp_path, {}):
        assert Holder.read(tmp_path / LOCK_FILE).pid == os.getpid()  # type: ignore[union-attr]


def test_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", refuse)
    with locked(tmp_path, {}):
        with pytest.raises(XTunerError, match="in use by another run"):
            FolderLock(tmp_path, {}).take()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("turn", range(12))
def test_of_many_only_one_wins(tmp_path: Path, turn: int) -> None:
    """A dead lock is there, and eight take it at the same moment."""
    put(tmp_path, dataclasses.replace(Holder.here({}), pid=2**22 + 5))
    locks = [FolderLock(tmp_path, {}) for _ in range(8)]
    gate = threading.Barrier(8)
    won: list[FolderLock] = []

    def take(lock: FolderLock) -> None:
        gate.wait()
        try:
            lock.take()
            won.append(lock)
        except XTunerError:
            return

    threads = [threading.Thread(target=take, args=(lock,)) for lock in locks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for lock in won:
        lock.release()  # one that is lost ends its process
    assert len(won) == 1
    assert not list(tmp_path.iterdir())


def test_a_start_that_was_killed_at_taking_over(tmp_path: Path, quick: None) -> None:
    put(tmp_path, dataclasses.replace(Holder.here({}), pid=2**22 + 5))
    guard = tmp_path / f"{LOCK_FILE}.takeover"
    guard.touch()
    os.utime(guard, (1, 1))
    with locked(tmp_path, {}):
        assert not guard.exists()


def test_a_run_whose_folder_was_taken_over_ends(tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    monkeypatch.setattr(os, "_exit", lambda code: ended.set())
    with locked(tmp_path, {}):
        put(tmp_path, ELSEWHERE)
        assert ended.wait(5)
    assert Holder.read(tmp_path / LOCK_FILE) == ELSEWHERE  # not ours to remove


def test_refreshed(tmp_path: Path, quick: None) -> None:
    with locked(tmp_path, {}):
        os.utime(tmp_path / LOCK_FILE, (1, 1))
        deadline = time.monotonic() + 5
        while (tmp_path / LOCK_FILE).stat().st_mtime < 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(XTunerError, match="cannot be made"), locked(tmp_path / "file" / "run", {}):
        raise AssertionError
