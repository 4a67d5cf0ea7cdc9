"""Steps of a longer work, each a command of its own; a rerun goes on with the first that is not finished."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

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
        code = subprocess.run([sys.executable, "-m", "xtuner", *words], check=False).returncode
        if code != 0:
            raise StepFailed(name, code)
        self._write(file, finished=True, seconds=round(time.perf_counter() - start, 1))
        return True

    def _write(self, file: Path, **facts: bool | float) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps({"mark": self._mark, **facts}) + "\n", encoding="utf-8")
        partial.replace(file)


def _mark(before: str, inputs: Sequence[str | Path]) -> str:
    digest = hashlib.sha256(before.encode())
    for one in inputs:
        content = one.read_bytes() if isinstance(one, Path) else one.encode()
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()
