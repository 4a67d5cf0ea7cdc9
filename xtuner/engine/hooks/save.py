"""Saving every few steps and at the end."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook


class SaveHook(Hook):
    """Saves every `interval` optimizer steps, after the last one, and when the run was asked to stop.

    Args:
        interval: optimizer steps between checkpoints.
    """

    priority = "VERY_LOW"

    def __init__(self, interval: int) -> None:
        self.interval = interval
        self._saved = -1

    def before_train(self, runner: Any) -> None:
        """Remembers that the checkpoint resumed from is there."""
        self._saved = runner.iter

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Saves where the steps done are a multiple of the interval."""
        if (runner.iter + 1) % self.interval == 0:
            self._save(runner, runner.iter + 1)

    def after_train(self, runner: Any) -> None:
        """Saves what the last interval left unsaved."""
        if self._saved != runner.iter:
            self._save(runner, runner.iter)

    def _save(self, runner: Any, step: int) -> None:
        runner.save_run(step)
        self._saved = step
