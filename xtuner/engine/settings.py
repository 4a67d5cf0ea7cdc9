"""The settings of a run that are neither model nor data: how often to save and log, and the seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

VISUALIZERS = ("tensorboard", "wandb")
"""Where scalars may go beside the text log."""


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
        async_save: write checkpoints beside the training, from a copy in host memory.
        keep_best: metric of evaluation during training, ``val/<benchmark>/overall`` for instance, whose best
            checkpoint stays although newer ones come; None for none. It is looked at in steps that save.
        max_skipped_steps: so many steps in a row without a finite gradient end the run.

    Raises:
        ValueError: a number out of range or an unknown visualizer.
    """

    save_steps: int = 500
    save_total_limit: int | None = 2
    logging_interval: int = 10
    seed: int = 42
    visualizers: Sequence[str] = ("tensorboard",)
    async_save: bool = False
    keep_best: str | None = None
    max_skipped_steps: int = 20

    def __post_init__(self) -> None:
        for name in ("save_steps", "logging_interval", "max_skipped_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: expected 1 or more.")
        if self.save_total_limit == -1:
            self.save_total_limit = None
        if self.save_total_limit is not None and self.save_total_limit < 1:
            raise ValueError(f"save_total_limit is {self.save_total_limit}: expected 1 or more, or None to keep all.")
        if isinstance(self.visualizers, str):
            self.visualizers = (self.visualizers,)
        unknown = [name for name in self.visualizers if name not in VISUALIZERS]
        if unknown:
            raise ValueError(f"visualizers names {unknown}: expected some of {list(VISUALIZERS)}.")
