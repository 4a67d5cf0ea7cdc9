"""The settings of a run that are neither model nor data: how often to save and log, and the seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from xtuner.constants import VISUALIZERS
from xtuner.errors import nearest

LossMean = Literal["step", "micro_batch"]


@dataclass
class RuntimeSettings:
    """When a run saves and logs, and where its randomness starts.

    Args:
        save_steps: optimizer steps between checkpoints; the last step is always saved.
        save_total_limit: checkpoints kept, the newest ones; None or -1 keeps all.
        logging_interval: optimizer steps between log lines; also the only steps at which the host waits for
            the device.
        seed: start of all random numbers; rank r trains with ``seed + r``.
        visualizers: any of ``VISUALIZERS``.
        val_interval: optimizer steps between evaluations during training, one more after the last step; None = none.
        val_benchmarks: names of the config's benchmarks to evaluate then; None = all whose files are there.
        val_limit: only so many questions of each; None = all.
        loss_mean: what the gradient is the mean over: ``step``: the supervised tokens of all micro-batches and ranks,
            so that neither packing nor accumulation changes it; ``micro_batch``: those of each micro-batch, then the
            plain mean over micro-batches, as trainers did before.
        bad_sample_limit: share of the samples that may be unreadable and replaced before the run stops.
        async_save: write checkpoints beside the training, from a copy in host memory.
        keep_best: score of the evaluation during training, ``val/<benchmark>`` for instance, whose best checkpoint
            stays although newer ones come; None = none. It counts where steps are both saved and evaluated.
        max_skipped_steps: so many steps in a row without a finite gradient end the run.
        ema_decay: share of the former average of the trained weights that a step keeps; see `EmaHook`. None = none.

    Raises:
        ValueError: a number out of range or an unknown visualizer.
    """

    save_steps: int = 500
    save_total_limit: int | None = 2
    logging_interval: int = 10
    seed: int = 42
    visualizers: Sequence[str] = ("tensorboard",)
    val_interval: int | None = None
    val_benchmarks: Sequence[str] | None = None
    val_limit: int | None = None
    loss_mean: LossMean = "step"
    bad_sample_limit: float = 0.01
    async_save: bool = False
    keep_best: str | None = None
    max_skipped_steps: int = 20
    ema_decay: float | None = None

    def __post_init__(self) -> None:
        for name in ("save_steps", "logging_interval", "max_skipped_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: expected 1 or more.")
        if self.save_total_limit == -1:
            self.save_total_limit = None
        if self.save_total_limit is not None and self.save_total_limit < 1:
            raise ValueError(f"save_total_limit is {self.save_total_limit}: expected 1 or more, or None to keep all.")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay is {self.ema_decay}: expected a number from 0 to below 1, or None.")
        self._check_evaluation()
        if isinstance(self.val_benchmarks, str):
            self.val_benchmarks = (self.val_benchmarks,)
        if isinstance(self.visualizers, str):
            self.visualizers = (self.visualizers,)
        if self.loss_mean not in get_args(LossMean):
            raise ValueError(f"loss_mean is '{self.loss_mean}': expected one of {', '.join(get_args(LossMean))}.")
        if not 0 <= self.bad_sample_limit <= 1:
            raise ValueError(f"bad_sample_limit is {self.bad_sample_limit}: expected a share from 0 to 1.")
        unknown = [name for name in self.visualizers if name not in VISUALIZERS]
        if unknown:
            raise ValueError(
                f"visualizers names {unknown}: expected one or more of {list(VISUALIZERS)}."
                + nearest(str(unknown[0]), VISUALIZERS)
            )

    def _check_evaluation(self) -> None:
        for name in ("val_interval", "val_limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}: expected 1 or more, or None.")
        if self.keep_best is not None and (self.val_interval is None or not self.keep_best.startswith("val/")):
            raise ValueError(
                f"keep_best is '{self.keep_best}': expected val/<benchmark>, a score of the validation during "
                "training, which needs val_interval."
            )
