"""Parts of a config's model on the meta device, and the memory that training them takes."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy

import torch
from mmengine.config import Config
from torch import nn

from xtuner.memory_estimate import MemoryEstimate
from xtuner.model.activations import kept_bytes

SUPERVISED_SHARE = 0.5
"""Assumed share of text tokens with a label: of instructions in several turns, half is answer."""


def build_parts(cfg: Config) -> dict[str, nn.Module]:
    """Builds the config's model without weights; returns its parts by name, frozen and in the modes of training.

    Raises:
        XTunerError: parts that do not fit together, or rates for what is not trained.
    """
    from xtuner.engine.steps.optim import build_optimizer, check_rates
    from xtuner.model.meta import meta_init
    from xtuner.registry import build, resolve_type

    with meta_init():
        model = build(cfg.model)
    model.train()
    optimizer = cfg.get("optimizer")
    if (
        optimizer
        and resolve_type(optimizer.type) is build_optimizer
        and any(p.requires_grad for p in model.parameters())
    ):
        check_rates(optimizer, model)
    return model.parts()


def count_parameters(part: nn.Module) -> tuple[int, int]:
    """Returns how many parameters of `part` are frozen and how many are trained."""
    counts = [0, 0]
    for parameter in part.parameters():
        counts[parameter.requires_grad] += parameter.numel()
    return counts[0], counts[1]


def estimate(
    cfg: Config, parts: Mapping[str, nn.Module], deepspeed: str | None, gpus: int, batch: int, pictures: int = 1
) -> MemoryEstimate:
    """Estimates the memory of training, by the formulas of `xtuner.memory_estimate`.

    A sample counts as its longest: ``max_length`` text tokens, `SUPERVISED_SHARE` of them with a label, and
    `pictures` (of each the parts' ``num_tokens``, and what a trained encoder keeps of it). The precision ``auto``
    counts as bf16.
    """
    from xtuner.engine.strategies.deepspeed_settings import read_deepspeed
    from xtuner.memory_estimate import estimate_activations, estimate_memory, read_decoder, read_zero

    zero = read_zero(read_deepspeed(deepspeed)) if deepspeed else None
    compute_bytes = 4 if cfg.get("optimizer", {}).get("precision") == "fp32" else 2
    counts = [count_parameters(part) for part in parts.values()]
    frozen, trained = (sum(column) for column in zip(*counts, strict=True))
    activations = 0.0
    decoders = [part.config for part in parts.values() if hasattr(getattr(part, "config", None), "vocab_size")]
    if decoders and trained:
        text = cfg.get("train_dataset", {}).get("max_length", 2048)
        tokens = text + pictures * sum(getattr(part, "num_tokens", 0) for part in parts.values())
        activations = estimate_activations(
            read_decoder(decoders[0]),
            tokens=batch * tokens,
            supervised=round(batch * text * SUPERVISED_SHARE),
            compute_bytes=compute_bytes,
            checkpointing=cfg.model.get("activation_checkpointing", False),
        )
    activations += batch * pictures * sum(_kept_of_picture(part, compute_bytes) for part in parts.values())
    return estimate_memory(frozen, trained, zero, gpus, compute_bytes, activations)


def _kept_of_picture(part: nn.Module, compute_bytes: int) -> int:
    """Bytes that a part keeps of one picture for its backward pass: 0 but for trained encoders."""
    blank = getattr(part, "blank_picture", None)
    if blank is None or not count_parameters(part)[1]:
        return 0
    dtype = torch.float32 if compute_bytes == 4 else torch.bfloat16
    with torch.device("meta"):
        return kept_bytes(deepcopy(part).to(dtype), blank().to(dtype))
