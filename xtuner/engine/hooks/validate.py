"""Evaluating every few steps and after the last."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmengine.hooks import Hook

if TYPE_CHECKING:
    from xtuner.engine.hooks.validation import ValLoop


class ValidateHook(Hook):
    """Evaluates every `interval` optimizer steps and after the last one, once their checkpoint is written.

    Args:
        loop: what evaluates.
        interval: optimizer steps between evaluations.
    """

    priority = "LOWEST"

    def __init__(self, loop: ValLoop, interval: int) -> None:
        self.loop = loop
        self.interval = interval

    def before_train(self, runner: Any) -> None:
        """Makes the folder ready; catches up on an evaluation that a former run was killed in."""
        if runner.rank == 0:
            self.loop.prepare(runner.iter)
        if runner.iter and self._is_due(runner, runner.iter):
            # one rank looks, for all must do the same
            done = runner.collective.gather(self.loop.is_done(runner.iter))[0]
            if not done:
                self.loop.run(runner, runner.iter)

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Evaluates where the steps done are a multiple of the interval, or all."""
        step = runner.iter + 1
        if self._is_due(runner, step) and not runner.interrupted:
            self.loop.run(runner, step)

    def _is_due(self, runner: Any, step: int) -> bool:
        return step % self.interval == 0 or step == runner.max_iters
