"""A progress bar on a terminal."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from xtuner.log import console


class ProgressHook(Hook):
    """Shows the steps done, on rank 0 and only where a person looks on; log lines carry the rest."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._task: Any = None

    def before_train(self, runner: Any) -> None:
        """Starts the bar."""
        if runner.rank == 0 and console.is_terminal:
            columns = (
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=console)
            self._task = self._bar.add_task("training", total=runner.max_iters, completed=runner.iter)
            self._bar.start()

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Moves the bar by one step."""
        if self._bar is not None:
            self._bar.advance(self._task)

    def after_train(self, runner: Any) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
