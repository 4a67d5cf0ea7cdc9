"""Stopping on a signal: finish the step, save, leave with a code of its own."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from types import FrameType
from typing import Any

from mmengine.hooks import Hook

from xtuner.engine.processes.signals import STOP_SIGNALS, second_signal_ends
from xtuner.log import get_logger


class StopHook(Hook):
    """Turns the first SIGTERM, SIGUSR1 (Slurm's warning) or Ctrl-C into a request to stop after the running
    step.

    The request travels to all ranks with the next step's token counts, so that all stop after the same step.
    A second signal ends this process at once; see `second_signal_ends`.
    """

    priority = "VERY_HIGH"

    def __init__(self) -> None:
        self._former: dict[int, Any] = {}
        self._watch = ExitStack()

    def before_run(self, runner: Any) -> None:
        """Takes over the signals."""
        self._watch.enter_context(second_signal_ends())

        def request(number: int, frame: FrameType | None) -> None:
            if not runner.stop_requested:
                get_logger().warning("%s: the run saves after the current step and stops.", signal.Signals(number).name)
            runner.stop_requested = True

        for number in STOP_SIGNALS:
            self._former[number] = signal.signal(number, request)

    def after_run(self, runner: Any) -> None:
        """Gives the signals back."""
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former.clear()
        self._watch.close()
