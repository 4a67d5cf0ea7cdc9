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
        self.saved = -1
        """Step that was saved last."""

    def before_train(self, runner: Any) -> None:
        """Remembers that the checkpoint resumed from is there."""
        self.saved = runner.iter

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Saves where the steps done are a multiple of the interval, or all."""
        step = runner.iter + 1
        if step % self.interval == 0 or step == runner.max_iters:
            self.save(runner, step)

    def after_train(self, runner: Any) -> None:
        """Saves what a request to stop left unsaved, and waits until it is written."""
        if self.saved != runner.iter:
            self.save(runner, runner.iter)
        runner.saver.close()

    def save(self, runner: Any, step: int) -> None:
        """Saves the state after `step` steps."""
        runner.save_run(step)
        self.saved = step
