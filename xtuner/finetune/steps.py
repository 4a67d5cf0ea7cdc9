"""Steps of a longer work, each a command of its own; a rerun goes on with the first that is not finished."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from xtuner.launch import FORWARDED
from xtuner.log import get_logger


class StepFailed(Exception):
    """A step's command ended with an exit code other than 0.

    Args:
        name: of the step.
        code: exit code.
    """

    def __init__(self, name: str, code: int) -> None:
        super().__init__(f"step '{name}' ended with exit code {code}")
        self.code = code


class Steps:
    """Runs commands of this program one after the other and remembers which are finished.

    Each step has a mark: of what it reads, and of the steps before it. A step with the mark of its last run is not run
    again; one that was started with it is gone on with; any other starts anew.

    Args:
        folder: of the marks.
        total: number of steps, for people.
    """

    def __init__(self, folder: Path, total: int) -> None:
        self.folder = folder
        self.total = total
        self._number = 0
        self._mark = ""

    def run(self, name: str, inputs: Sequence[str | Path], command: Callable[[bool], Sequence[Any]]) -> bool:
        """Runs a step unless it is finished.

        Args:
            name: of the step.
            inputs: texts, and files whose content counts.
            command: returns the words behind ``xtuner``; told whether an earlier start of the same step is gone on
                with.

        Returns:
            Whether it ran.

        Raises:
            StepFailed: the command did.
        """
        self._number += 1
        self._mark = _mark(self._mark, inputs)
        title = f"step {self._number} of {self.total}, {name}"
        file = self.folder / f"{name.replace(' ', '_')}.json"
        former = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        same = former.get("mark") == self._mark
        if same and former.get("finished"):
            get_logger().info("%s: finished by an earlier run", title)
            return False
        words = [str(word) for word in command(same)]
        get_logger().info("%s%s: xtuner %s", title, " (goes on)" if same else "", " ".join(words))
        self._write(file, finished=False)
        start = time.perf_counter()
        code = run_command([sys.executable, "-m", "xtuner", *words])
        if code != 0:
            raise StepFailed(name, code)
        self._write(file, finished=True, seconds=round(time.perf_counter() - start, 1))
        return True

    def _write(self, file: Path, **facts: bool | float) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps({"mark": self._mark, **facts}) + "\n", encoding="utf-8")
        partial.replace(file)


def run_command(command: Sequence[str]) -> int:
    """Runs a command and returns its exit code; signals go to it, so that a training saves before both end."""
    sys.stdout.flush()
    sys.stderr.flush()
    # a session of its own: a terminal would send Ctrl-C to both, and here it is passed on
    process = subprocess.Popen(list(command), start_new_session=True)
    former = {number: signal.signal(number, lambda number, _: process.send_signal(number)) for number in FORWARDED}
    try:
        code = process.wait()
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
    # ended by a signal: as a shell reports it
    return 128 - code if code < 0 else code


def _mark(before: str, inputs: Sequence[str | Path]) -> str:
    digest = hashlib.sha256(before.encode())
    for one in inputs:
        content = one.read_bytes() if isinstance(one, Path) else one.encode()
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()
