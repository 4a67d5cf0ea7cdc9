"""One process under NCCL: ZeRO 1 to 3, offload, the fp16 scaler, resuming bit for bit, saving beside the training."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from tests.xtuner.engine.toy import train_toy
from tools.gpu.setting import Setting, Unmet, within
from tools.gpu.stages import Rows
from xtuner.model.files.weight_files import read_state_dict

STEPS, MIDDLE = 6, 3
ZERO = {"zero1": "deepspeed_zero1", "zero2": "deepspeed_zero2", "zero3": "deepspeed_zero3"}
NEAR = 1e-4
"""Largest difference of a weight after six steps in float32: ZeRO sums in another order."""


def rows(setting: Setting) -> Rows:
    """Returns the stage's rows."""
    names, compared = (("zero2",), ()) if setting.tiny else (ZERO, ZERO)
    return [
        ("resumed bit for bit, plain", partial(resumed, setting, None)),
        *((f"resumed bit for bit, {name}", partial(resumed, setting, ZERO[name])) for name in names),
        *(
            (f"weights of {name} and plain", partial(same_as_plain, setting, ZERO[name]))
            for name in names
            if not setting.tiny
        ),
        ("zero2_offload", partial(trained, setting, "deepspeed_zero2_offload", {})),
        ("zero3_offload", partial(trained, setting, "deepspeed_zero3_offload", {})),
        ("fp16, plain", partial(trained, setting, None, {"precision": "fp16"})),
        ("fp16, zero2", partial(trained, setting, ZERO["zero2"], {"precision": "fp16"})),
        ("bf16, zero3", partial(trained, setting, ZERO["zero3"], {"precision": "bf16"})),
        ("async save", partial(resumed, setting, None, async_save=True)),
    ]


def train(folder: Path, deepspeed: str | None, resume: str | None = None, **options: Any) -> Path:
    """Trains the tests' toy; returns its last checkpoint."""
    settings = {"max_iters": STEPS, "save_steps": MIDDLE, "precision": "fp32", **options}
    train_toy(folder, deepspeed, resume=resume, **settings)
    return folder / f"iter_{STEPS}.pth"


def resumed(setting: Setting, deepspeed: str | None, **options: Any) -> dict[str, Any]:
    """An unbroken run and one that goes on from its middle, with dropout: the same weights, bit for bit."""
    folder = setting.scratch("resumed")
    whole = train(folder / "whole", deepspeed, dropout=0.3, **options)
    middle = str(folder / "whole" / f"iter_{MIDDLE}.pth")
    again = train(folder / "again", deepspeed, resume=middle, dropout=0.3, **options)
    ours, theirs = read_state_dict(again), read_state_dict(whole)
    other = [name for name in theirs if not torch.equal(ours[name], theirs[name])]
    if other or set(ours) != set(theirs):
        raise Unmet(f"{len(other)} of {len(theirs)} weights differ after resuming", {"weights": len(theirs)})
    return {"weights": len(theirs), "differ": 0}


def same_as_plain(setting: Setting, deepspeed: str) -> dict[str, Any]:
    """Six steps of a ZeRO stage and of the plain runner."""
    folder = setting.scratch("same")
    theirs = read_state_dict(train(folder / "plain", None))
    ours = read_state_dict(train(folder / "zero", deepspeed))
    difference = max(float((ours[name].float() - theirs[name].float()).abs().max()) for name in theirs)
    return within({"difference": difference}, difference, NEAR, "the largest difference of a weight")


def trained(setting: Setting, deepspeed: str | None, options: dict[str, Any]) -> dict[str, Any]:
    """A run to its end, with weights that are numbers."""
    if "precision" in options or (deepspeed or "").endswith("offload"):
        setting.need_gpu("half precision and offload")
    found = read_state_dict(train(setting.scratch("trained") / "run", deepspeed, **options))
    if not all(bool(weight.isfinite().all()) for weight in found.values()):
        raise Unmet("a weight is no number after six steps", {"weights": len(found)})
    return {"weights": len(found)}
