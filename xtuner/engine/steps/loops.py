"""The training loop: one iteration is one optimizer step, one data iterator serves the whole run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from mmengine.runner import BaseLoop
from torch import nn
from torch.utils.data import DataLoader

from xtuner.engine.steps.loader import StreamLoader, WorkerLostError, lost_worker
from xtuner.errors import XTunerError


class TrainLoop(BaseLoop):
    """Feeds the runner the micro-batches of each optimizer step.

    The loader's batch sampler is endless and starts where the run stands, so that resuming in mid-epoch
    decodes nothing that was seen. Hooks follow mmengine's convention: within ``after_train_iter`` the steps
    done are ``runner.iter + 1``.

    Args:
        runner: a `PlainRunner` or `DeepSpeedRunner`.
        dataloader: with a batch sampler as those of `xtuner.data.batches.samplers`.
        max_iters: optimizer steps of the whole run.

    Attributes:
        data_wait: seconds that the last step waited for its micro-batches.
    """

    def __init__(self, runner: Any, dataloader: DataLoader | StreamLoader, max_iters: int) -> None:
        super().__init__(runner, dataloader)
        self._iter = 0
        self._max_iters = max_iters
        self.data_wait = 0.0

    @property
    def iter(self) -> int:
        """Optimizer steps done; within a step, those before it."""
        return self._iter

    @property
    def max_iters(self) -> int:
        """Optimizer steps of the whole run."""
        return self._max_iters

    @property
    def epoch(self) -> int:
        """Passes over the data that are done."""
        return self.dataloader.batch_sampler.epoch_at(self._iter)[0]

    @property
    def max_epochs(self) -> int:
        """Passes over the data of the whole run, a last partial one included."""
        return self.dataloader.batch_sampler.epoch_at(self._max_iters - 1)[0] + 1

    def start_at(self, step: int) -> None:
        """Makes `run` begin with optimizer step `step` (from 0)."""
        self._iter = step

    def run(self) -> nn.Module:
        """Trains until the last step or until a stop was asked for; returns the model."""
        sampler = self.dataloader.batch_sampler
        sampler.set_start(self._iter)
        self.runner.module.train()
        self.runner.call_hook("before_train")
        if self._iter < self._max_iters:
            batches = iter(self.dataloader)
            # starting the workers draws random numbers, so the run's own come after it
            self.runner.start_random_numbers()
        while self._iter < self._max_iters and not self.runner.interrupted:
            started = time.perf_counter()
            try:
                micro_batches = _take(batches, sampler.grad_accum, self.runner.collective.rank)
            except WorkerLostError as lost:
                self.runner.end_for(lost, sampler.grad_accum)
            self.data_wait = time.perf_counter() - started
            sampler.took(micro_batches)
            self.runner.call_hook("before_train_iter", batch_idx=self._iter, data_batch=micro_batches)
            result = self.runner.train_step(micro_batches)
            self.runner.call_hook("after_train_iter", batch_idx=self._iter, data_batch=micro_batches, outputs=result)
            self._iter += 1
        self.runner.call_hook("after_train")
        return self.runner.module


def _take(batches: Iterator[Any], count: int, rank: int = 0) -> list[Any]:
    try:
        return [next(batches) for _ in range(count)]
    except XTunerError as error:
        # a loader's worker hands its traceback on as part of the message; ours is what follows the class's name
        message = str(error).rpartition(f"{XTunerError.__module__}.{XTunerError.__name__}: ")[2]
        raise XTunerError(message.strip()) from error
    # also what a worker has handed over goes with it: it shares its tensors by a connection
    except (RuntimeError, OSError, EOFError) as error:
        if (lost := lost_worker(batches, rank)) is None:
            raise
        raise lost from error
