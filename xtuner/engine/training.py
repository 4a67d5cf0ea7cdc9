"""A training run: its plan, and what both runners share."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from torch import nn

from xtuner import __version__
from xtuner.engine.checkpoints.checkpoint import (
    CheckpointFolder,
    Score,
    capture_rng,
    capture_scalars,
    restore_rng,
    restore_scalars,
)
from xtuner.engine.checkpoints.integrity import check_bytes
from xtuner.engine.checkpoints.resumable import check_resumable
from xtuner.engine.checkpoints.saving import CheckpointSaver
from xtuner.engine.curves import curve_kinds
from xtuner.engine.hooks.validation import ValLoop
from xtuner.engine.processes.environment import Collective, Environment, seed_everything
from xtuner.engine.steps.guard import FiniteGuard
from xtuner.engine.steps.loops import TrainLoop
from xtuner.engine.steps.optim import set_learning_rate
from xtuner.engine.steps.schedule import Schedule
from xtuner.engine.steps.settings import RuntimeSettings
from xtuner.engine.steps.step import LOST, StepGivenUpError, StepResult, give_up_step, run_step
from xtuner.errors import XTunerError
from xtuner.log import get_logger


@dataclass
class RunPlan:
    """What a run needs beside model, optimizer and data.

    Attributes:
        name: of the run, in logs.
        work_dir: the run's folder.
        environment: this process.
        settings: saving, logging, seed.
        schedule: of the learning rate.
        max_iters: optimizer steps of the whole run.
        global_batch: samples of an optimizer step, all processes together.
        resume: checkpoint to go on from, if any.
        validation: evaluation during training, if any.
        deepspeed: DeepSpeed's complete settings; None trains by plain torch.
        source_names: sources of the data, for their losses in the log.
        profile_steps: steps to record with the profiler.
        base: what the model stands on, but for marks; see `describe_base`.
    """

    name: str
    work_dir: Path
    environment: Environment
    settings: RuntimeSettings
    schedule: Schedule
    max_iters: int
    global_batch: int
    resume: Path | None = None
    validation: ValLoop | None = None
    deepspeed: dict[str, Any] | None = None
    source_names: Sequence[str] = ()
    profile_steps: int = 0
    base: Mapping[str, Any] | None = None


class TrainingMixin:
    """What both runners share: the step, exact resuming, saving. Mixed into mmengine's runners, whose parts
    it uses.

    Attributes:
        plan: of the run.
        collective: exchange between the ranks' hosts.
        backend: plain or DeepSpeed; see `xtuner.engine.steps.step.TrainBackend`.
        saver: writes the checkpoints.
        guard: counts skipped steps.
        stop_requested: this rank got a signal.
        interrupted: all ranks agreed to stop; true after `train` where a signal ended it.
        pause_seconds: time spent on checkpoints and evaluation, which the log keeps out of the steps' time.
    """

    plan: RunPlan
    backend: Any
    model: Any
    optim_wrapper: Any
    train_loop: TrainLoop
    visualizer: Any
    logger: Any
    call_hook: Any
    log_dir: str
    timestamp: str
    rank: int

    def begin(self, plan: RunPlan) -> None:
        """Sets what mmengine's constructors do not know of."""
        self.plan = plan
        self.collective = Collective()
        self.checkpoints = CheckpointFolder(plan.work_dir, plan.settings.save_total_limit)
        self.guard = FiniteGuard(plan.work_dir, plan.settings.max_skipped_steps, self.collective.rank)
        self.stop_requested = False
        self.interrupted = False
        self.pause_seconds = 0.0
        self._shared: list[logging.Handler] = []
        self._random_numbers: dict[str, Any] | None = None
        self._base: dict[str, Any] | None = None

    @property
    def module(self) -> nn.Module:
        """The model without wrappers."""
        return self.backend.module

    def rates(self) -> dict[str, float]:
        """Returns the learning rate of each group of weights in the running step, by label."""
        return self.backend.optimizer.rates()

    def train(self) -> nn.Module:
        """Trains from the start or the checkpoint to the last step, or until a signal; returns the model."""
        loop = self.train_loop
        self.backend = self.make_backend()
        self.saver = CheckpointSaver(
            self.backend, self.checkpoints, self.collective, background=self.plan.settings.async_save
        )
        if self.plan.resume is not None:
            self.resume_run(self.plan.resume, loop)
            if loop.iter >= self.plan.max_iters:
                get_logger().info("%s is finished (step %d): nothing to do", self.plan.work_dir, loop.iter)
                self.visualizer.close()
                return self.module
        self._open_curves()
        self.call_hook("before_run")
        try:
            loop.run()
        finally:
            self.call_hook("after_run")
            self._close_curves()
            for handler in self._shared:
                get_logger().removeHandler(handler)
        return self.module

    def write_scalars(self, scalars: Mapping[str, float], step: int) -> None:
        """Sends `scalars` to the visualizers; one that fails, on a full disk for instance, must not end a run whose
        weights are worth more than its curves.
        """
        try:
            self.visualizer.add_scalars(dict(scalars), step=step)
        except Exception as error:
            get_logger().error("The scalars of step %d could not be written: %s. Training continues.", step, error)

    def _open_curves(self) -> None:
        """Opens the visualizers, which would else be opened by the first scalars.

        Raises:
            XTunerError: a service starts no run.
        """
        if self.rank == 0:
            for kind in curve_kinds(self.plan.settings.visualizers):
                _ = self.visualizer.get_backend(kind.__name__).experiment

    def _close_curves(self) -> None:
        try:
            self.visualizer.close()
        except Exception as error:
            get_logger().warning(
                "The last points of the curves could not be written: %s. The checkpoints are not affected.", error
            )

    def make_backend(self) -> Any:
        """Returns what the steps run on."""
        raise NotImplementedError

    def train_step(self, micro_batches: Sequence[Mapping[str, Any]]) -> StepResult:
        """Runs one optimizer step on this rank's micro-batches."""
        factor = self.plan.schedule.factor(self.train_loop.iter, self.plan.max_iters)
        set_learning_rate(self.backend.optimizer.optimizer, factor)
        try:
            mean = self.plan.settings.loss_mean
            result = run_step(self.backend, micro_batches, self.collective, self._votes(), mean)
        except StepGivenUpError:
            self._end_saved(None)
            raise
        self.guard.watch(self.train_loop.iter + 1, result.grad_norm, micro_batches)
        self.interrupted = result.votes["stop"] > 0
        if result.votes["written"] == self.collective.world_size:
            self.saver.finish()
        if result.votes["give_up"]:
            self.save_run(self.train_loop.iter + 1)
            self.saver.finish()
            raise self.guard.failure()
        return result

    def end_for(self, lost: XTunerError, grad_accum: int) -> NoReturn:
        """Ends the run on all ranks because this one cannot make the next step; what is done is saved before.

        Raises:
            XTunerError: `lost`, with where the state is.
        """
        give_up_step(self.collective, self._votes(), grad_accum)
        self._end_saved(lost)

    def _end_saved(self, lost: XTunerError | None) -> NoReturn:
        step = self.train_loop.iter
        if step > 0:
            self.save_run(step)
            self.saver.finish()
        reason = next(one for one in self.collective.gather(None if lost is None else str(lost)) if one is not None)
        saved = f"The state after step {step} is saved." if step else "No step was made."
        raise XTunerError(f"{reason} {saved}") from lost

    def _votes(self) -> dict[str, bool]:
        """What this rank tells the others with the next step."""
        return {
            "stop": self.stop_requested,
            "written": self.saver.has_written,
            "give_up": self.guard.exhausted,
            LOST: False,
        }

    def start_random_numbers(self) -> None:
        """Puts the generators where they stood in the checkpoint, or at ``seed + rank`` in a new run."""
        if self._random_numbers is None:
            seed_everything(self.plan.settings.seed + self.collective.rank)
        else:
            restore_rng(self._random_numbers)

    def save_run(self, step: int) -> None:
        """Saves the state after `step` optimizer steps; see `CheckpointSaver`."""
        started = time.perf_counter()
        self.guard.poll(wait=True)
        self.saver.save(step, self._facts(step))
        self.pause_seconds += time.perf_counter() - started

    def rate_run(self, step: int, scores: Mapping[str, float]) -> None:
        """Takes what an evaluation after `step` steps measured: the checkpoint that is best by ``keep_best`` stays.

        Called on all ranks; `scores` counts on rank 0.
        """
        metric = self.plan.settings.keep_best
        if metric is None:
            return
        self.saver.finish()
        if self.collective.rank == 0 and metric in scores:
            self.checkpoints.rate(self.checkpoints.path(step), Score(metric, scores[metric]))

    def dump_config(self) -> None:
        """Does nothing: the command has written the config, as written and as resolved."""

    def _log_env(self, *_: Any) -> None:
        """Says in one line what runs where; mmengine's page is left out."""
        self._shared = self._share_log_file()
        here = self.plan.environment
        get_logger().info(
            f"xtuner {__version__}: {here.world_size} x {here.device.type}, work_dir {self.plan.work_dir}"
        )

    def _facts(self, step: int) -> dict[str, Any]:
        """What a checkpoint says of itself; the random states are every rank's."""
        trained = {n: p for n, p in self.module.named_parameters() if p.requires_grad}
        return {
            "iter": step,
            "max_iters": self.plan.max_iters,
            "finite": self.guard.in_row == 0,
            "global_batch": self.plan.global_batch,
            "world_size": self.collective.world_size,
            "zero_stage": self.backend.zero_stage,
            "precision": self.backend.optimizer.precision.name,
            "order": self.train_loop.dataloader.batch_sampler.order_facts(),
            "schedule": self.plan.schedule.facts(),
            "optimizer": self.backend.optimizer.algorithm,
            "groups": self.backend.optimizer.group_facts(),
            "places": self.collective.gather(self.train_loop.dataloader.batch_sampler.place()),
            "parameters": {n: list(getattr(p, "ds_shape", p.shape)) for n, p in trained.items()},
            "base": self.base(),
            "rng": self.collective.gather(capture_rng()),
            "scalars": capture_scalars(),
            "xtuner": __version__,
        }

    def base(self) -> dict[str, Any]:
        """Returns what the model stands on, with marks of its weights as they are. Called on all ranks."""
        if self._base is None:
            # once, for it stays
            base = self.plan.base or {"checkpoint": None, "parts": {}}
            unknown = {"name": "", "place": "", "from_checkpoint": False}
            model: Any = self.module
            marks = model.base_marks(self.collective.gather)
            parts = {part: {**base["parts"].get(part, unknown), "marks": marks[part]} for part in marks}
            self._base = {**base, "parts": parts}
        return self._base

    def resume_run(self, path: Path, loop: TrainLoop) -> None:
        """Takes weights, optimizer, step and random states from the checkpoint `path`.

        Raises:
            XTunerError: it does not fit this run; the message says in what.
        """
        trainer = self.backend.read_trainer(path)
        if "order" not in trainer:
            raise XTunerError(
                f"{path} comes from an older version, whose checkpoints do not record the next samples. Start a new "
                f"run from its weights: drop --resume and add --cfg-options pretrained_pth={path}"
            )
        if trainer["global_batch"] == self.plan.global_batch:
            # which samples a step sees must not depend on how many processes share them
            loop.dataloader.batch_sampler.continue_order(trainer["order"])
        check_resumable(trainer, self._facts(trainer["iter"]), path)
        places = trainer.get("places") or [None] * self.collective.world_size
        # a sampler of prepared data goes by the step alone
        loop.dataloader.batch_sampler.continue_at(places[self.collective.rank % len(places)])
        damage = [found for found in self.collective.gather(check_bytes(path, trainer, self.collective.rank)) if found]
        if damage:
            raise XTunerError(f"{path} is damaged: {'; '.join(damage)}; resume an older checkpoint with --resume PATH.")
        self.backend.load(path)
        self.backend.optimizer.keep_settings()
        self.checkpoints.adopt(path, trainer["iter"])
        restore_scalars(trainer.get("scalars", {}))
        loop.start_at(trainer["iter"])
        if trainer["world_size"] == self.collective.world_size:
            self._random_numbers = trainer["rng"][self.collective.rank]
        else:
            get_logger().warning(
                "%s was saved by %d processes: dropout restarts from the seed.", path, trainer["world_size"]
            )
        get_logger().info("Resumed from %s at step %d", path, loop.iter)

    def _share_log_file(self) -> list[logging.Handler]:
        """Sends our lines to mmengine's log file too, and its own below a warning to that file only."""
        files: list[logging.Handler] = [h for h in self.logger.handlers if isinstance(h, logging.FileHandler)]
        for handler in files:
            handler.handleError = _LogFailure(handler.baseFilename)  # type: ignore[method-assign, attr-defined]
        for handler in self.logger.handlers:
            if handler in files:
                get_logger().addHandler(handler)
            else:
                handler.setLevel(logging.WARNING)
        return files


class _LogFailure:
    """Reports once that a log file cannot be written; logging itself would print a traceback for each line."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.told = False

    def __call__(self, record: logging.LogRecord) -> None:
        """Is called within the handling of the error."""
        if not self.told:
            self.told = True
            sys.stderr.write(f"The log {self.path} cannot be written: {sys.exc_info()[1]}. Training continues.\n")
