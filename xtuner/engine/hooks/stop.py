"""Stopping on a signal: finish the step, save, leave with a code of its own."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

from mmengine.hooks import Hook

from xtuner.log import get_logger

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopHook(Hook):
    """Turns the first SIGTERM, SIGUSR1 (Slurm's warning) or Ctrl-C into a request to stop after the running
    step.

    The request travels to all ranks with the next step's token counts, so that all stop after the same step.
    A second signal acts as it would without this hook.
    """

    priority = "VERY_HIGH"

    def __init__(self) -> None:
        self._former: dict[int, Any] = {}

    def before_run(self, runner: Any) -> None:
        """Takes over the signals."""

        def request(number: int, frame: FrameType | None) -> None:
            get_logger().warning("%s: the run saves after the current step and stops.", signal.Signals(number).name)
            runner.stop_requested = True
            self._restore()

        for number in STOP_SIGNALS:
            self._former[number] = signal.signal(number, request)

    def after_run(self, runner: Any) -> None:
        """Gives the signals back."""
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former.clear()
