"""Saving every few steps and at the end."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.logging import MessageHub

from xtuner.engine.checkpoint import Score


class SaveHook(Hook):
    """Saves every `interval` optimizer steps, after the last one, and when the run was asked to stop.

    Args:
        interval: optimizer steps between checkpoints.
        keep_best: metric in mmengine's message hub whose best checkpoint stays; None for none. It counts where it was
            measured in the very step that saves, which an evaluation hook of higher priority does.
    """

    priority = "VERY_LOW"

    def __init__(self, interval: int, keep_best: str | None = None) -> None:
        self.interval = interval
        self.keep_best = keep_best
        self._saved = -1
        self._measured = 0
        self._measured_step = -1

    def before_train(self, runner: Any) -> None:
        """Remembers that the checkpoint resumed from is there, and what was measured before."""
        self._saved = runner.iter
        self._measured = self._count()

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Saves where the steps done are a multiple of the interval."""
        self._notice(runner.iter + 1)
        if (runner.iter + 1) % self.interval == 0:
            self._save(runner, runner.iter + 1)

    def after_train(self, runner: Any) -> None:
        """Saves what the last interval left unsaved, and waits until it is written."""
        self._notice(runner.iter)
        if self._saved != runner.iter:
            self._save(runner, runner.iter)
        runner.saver.close()

    def _save(self, runner: Any, step: int) -> None:
        runner.save_run(step, self._score(step))
        self._saved = step

    def _count(self) -> int:
        buffer = MessageHub.get_current_instance().log_scalars.get(self.keep_best)
        return 0 if buffer is None else len(buffer.data[0])

    def _notice(self, step: int) -> None:
        # the hub does not say when a value came: a longer history is a new one
        if self.keep_best is not None and (count := self._count()) != self._measured:
            self._measured, self._measured_step = count, step

    def _score(self, step: int) -> Score | None:
        if self.keep_best is None or self._measured_step != step:
            return None
        buffer = MessageHub.get_current_instance().get_scalar(self.keep_best)
        return Score(self.keep_best, float(buffer.current()))
