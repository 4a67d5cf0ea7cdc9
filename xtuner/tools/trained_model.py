"""The model of a config with the weights of a checkpoint, ready to answer: what test, convert and chat start from."""

from __future__ import annotations

from typing import Any

import torch

from xtuner.engine.precision import resolve_precision
from xtuner.log import get_logger
from xtuner.registry import build


def build_trained(cfg: Any, checkpoint: str | None, device: torch.device, precision: str | None = None) -> Any:
    """Builds a config's model, loads a checkpoint and puts the model into eval mode on `device`.

    Args:
        cfg: resolved config with a `model` whose class has ``load_checkpoint(path, required)`` and ``trainable``.
        checkpoint: weights; every trained part must be in it. None = as the config builds it.
        device: where it computes.
        precision: number format of all weights: ``auto``, ``bf16``, ``fp16``, ``fp32``, or ``saved`` = each as its own
            files have it; None = the config's.

    Raises:
        XTunerError: a part cannot be built, or the checkpoint does not fit.
    """
    # what training started from is in the checkpoint, or was changed by training
    model = build(cfg.model, pretrained_pth=None) if checkpoint else build(cfg.model)
    precision = precision or cfg.get("precision") or "auto"
    if precision != "saved":
        dtype = resolve_precision(precision, device).dtype
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)
    if checkpoint:
        model.load_checkpoint(checkpoint, required=model.trainable)
    else:
        get_logger().warning("no checkpoint given: the parts that training makes are as the config builds them")
    return model.to(device).eval()
