"""Steps: each runs once, goes on after a stop, and runs again when what it reads changed."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from xtuner.finetune.steps import StepFailed, Steps, run_command


class Program:
    """Stands for ``python -m xtuner``: notes its words, ends with the codes it is given."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.codes: dict[str, int] = {}

    def __call__(self, command: list[str]) -> int:
        assert command[1:3] == ["-m", "xtuner"]
        self.calls.append(command[3:])
        return self.codes.get(command[3], 0)


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Program:
    stand_in = Program()
    monkeypatch.setattr("xtuner.finetune.steps.run_command", stand_in)
    return stand_in


def run(folder: Path, first: str = "a", second: str = "b") -> list[bool]:
    """Two steps of one text each."""
    steps = Steps(folder, 2)
    return [
        steps.run("one", [first], lambda same: ("one", "resume" if same else "new")),
        steps.run("two", [second], lambda same: ("two", "resume" if same else "new")),
    ]


def test_finished_steps_are_not_run_again(tmp_path, program):
    assert run(tmp_path) == [True, True]
    assert run(tmp_path) == [False, False]
    assert len(program.calls) == 2


def test_a_stopped_step_goes_on(tmp_path, program):
    program.codes["two"] = 75
    with pytest.raises(StepFailed) as raised:
        run(tmp_path)
    assert raised.value.code == 75
    program.codes.clear()
    assert run(tmp_path) == [False, True]
    assert program.calls[-1] == ["two", "resume"]


def test_a_change_runs_its_step_and_all_behind_it_anew(tmp_path, program):
    run(tmp_path)
    assert run(tmp_path, second="c") == [False, True]
    assert run(tmp_path, first="d", second="c") == [True, True]
    assert program.calls[-2:] == [["one", "new"], ["two", "new"]]


def test_content_of_files_counts(tmp_path, program):
    file = tmp_path / "data.jsonl"
    file.write_text("1")
    for content, ran in (("1", True), ("1", False), ("2", True)):
        file.write_text(content)
        assert Steps(tmp_path / "steps", 1).run("one", [file], lambda _: ("one",)) is ran


SAVES = """
import pathlib, signal, sys, time
def save(*_):
    pathlib.Path(sys.argv[2]).write_text("saved")
    sys.exit(75)
signal.signal(signal.SIGNUM, save)
pathlib.Path(sys.argv[1]).touch()
time.sleep(60)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_goes_to_the_command_which_saves_first(tmp_path, name):
    ready, saved = tmp_path / "ready", tmp_path / "saved"

    def send() -> None:
        while not ready.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), getattr(signal, name))

    threading.Thread(target=send).start()
    before = signal.getsignal(getattr(signal, name))
    code = run_command([sys.executable, "-c", SAVES.replace("SIGNUM", name), str(ready), str(saved)])
    assert (code, saved.read_text()) == (75, "saved")
    assert signal.getsignal(getattr(signal, name)) == before


def test_a_command_that_a_signal_ends_has_the_code_of_a_shell():
    assert run_command([sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"]) == 137
