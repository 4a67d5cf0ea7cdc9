"""Run by torchrun on two ranks: trains the toy by DDP and every ZeRO stage, each unbroken and resumed; and the tiny
model on packed rows.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from tests.xtuner.engine.pictured import train_pictured
from tests.xtuner.engine.toy import ToyModel, train_toy
from xtuner.cli import main as main_of_xtuner

SETTINGS = dict(max_iters=6, save_steps=3, size=27, batch_size=2, accumulative_counts=2)
"""7 steps per epoch on two ranks, so that the resumed half is in mid-epoch."""
BAD_STEP = 4


class BadOnOneRank(ToyModel):
    """Its loss is no number in one micro-batch of one step, on rank 1 alone."""

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        self.calls = getattr(self, "calls", 0) + 1
        output = super().forward(*args, **kwargs)
        is_bad = self.calls == BAD_STEP * SETTINGS["accumulative_counts"] and torch.distributed.get_rank() == 1
        return {**output, "loss_sum": output["loss_sum"] * (float("nan") if is_bad else 1)}


def main(folder: Path) -> None:
    """Leaves one run's folder per case below `folder`."""
    for name in ("ddp", "zero1", "zero2", "zero3"):
        deepspeed = None if name == "ddp" else f"deepspeed_{name}"
        # weight decay makes two parameter groups; a small norm makes clipping act
        train_toy(folder / name, deepspeed, weight_decay=0.1, max_norm=0.5, **SETTINGS)
        train_toy(folder / f"{name}_whole", deepspeed, dropout=0.3, **SETTINGS)
        middle = folder / f"{name}_whole" / "iter_3.pth"
        train_toy(folder / f"{name}_resumed", deepspeed, resume=str(middle), dropout=0.3, **SETTINGS)
        # a checkpoint before the step that has no finite gradient, one after it, one a good step later
        bad = {**SETTINGS, "max_iters": BAD_STEP + 1, "save_steps": 1, "save_total_limit": None}
        runner = train_toy(folder / f"{name}_bad", deepspeed, model=BadOnOneRank, **bad)
        (folder / f"{name}_bad" / f"skipped_{torch.distributed.get_rank()}").write_text(str(runner.guard.skipped))
    for name in ("zero1", "zero2", "zero3"):
        bfloat16 = dict(pack=False, grad_accum=2, precision="bf16")
        train_pictured(folder / f"bf16_{name}", folder / "parts", f"deepspeed_{name}", **bfloat16)
    train_pictured(folder / "packed_zero2", folder / "parts", "deepspeed_zero2", pack=True, grad_accum=2)


def resume_in_one_process(folder: Path) -> None:
    """Converts the two ranks' checkpoints of the middle and goes on from them in a single process."""
    for name in ("zero1", "zero2"):
        universal = folder / f"{name}_universal"
        assert main_of_xtuner(["convert", "universal", str(folder / name / "iter_3.pth"), str(universal)]) == 0
        settings = {**SETTINGS, "accumulative_counts": 4, "weight_decay": 0.1, "max_norm": 0.5}
        train_toy(folder / f"{name}_one", f"deepspeed_{name}", resume=str(universal), **settings)


if __name__ == "__main__":
    (resume_in_one_process if "--one" in sys.argv else main)(Path(sys.argv[1]))
