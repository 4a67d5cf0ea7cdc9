"""A GPU out of memory: what takes it, and what to lower."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from xtuner.errors import XTunerError


@contextmanager
def explain_out_of_memory(cfg: Any, deepspeed: str | None, world_size: int) -> Iterator[None]:
    """Turns CUDA's error into a message with the estimate of `xtuner check-cfg` and the settings to change.

    Args:
        cfg: resolved config.
        deepspeed: the DeepSpeed setting in use.
        world_size: number of processes.

    Raises:
        XTunerError: in place of ``torch.OutOfMemoryError``.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise XTunerError(_advice(cfg, deepspeed, world_size, str(error).splitlines()[0])) from error


def _advice(cfg: Any, deepspeed: str | None, world_size: int, message: str) -> str:
    lines = [f"the GPU's memory is full: {message}", _estimate(cfg, deepspeed, world_size), "Try these, best first:"]
    batch, accumulation = cfg.train_dataloader.batch_size, cfg.optimizer.get("accumulative_counts", 1)
    if batch > 1:
        lines.append(
            f"  - batch_size={max(1, batch // 2)} accumulative_counts={accumulation * 2}: the same step in parts"
        )
    if cfg.model.get("activation_checkpointing", False) is not True:
        lines.append("  - activation_checkpointing=True: recomputes all layers")
    if deepspeed is None or "zero3" not in deepspeed:
        lines.append("  - --deepspeed deepspeed_zero3: splits weights, gradients and optimizer over the GPUs")
    elif "offload" not in deepspeed:
        lines.append(
            "  - --deepspeed deepspeed_zero3_offload: keeps weights and optimizer in host memory, but is slower"
        )
    lines.append("  - llm_lora (and llm_quantization='4bit'): trains adapters instead of the language model")
    return "\n".join(lines)


def _estimate(cfg: Any, deepspeed: str | None, world_size: int) -> str:
    from xtuner.memory_estimate import GIB
    from xtuner.tools.support.memory import build_parts, estimate

    memory = estimate(cfg, build_parts(cfg), deepspeed, world_size, cfg.train_dataloader.batch_size)
    names = ("weights", "gradients", "optimizer", "activations")
    shares = ", ".join(f"{name} {getattr(memory, name) / GIB:.1f}" for name in names)
    return f"Estimated need per GPU: {memory.total / GIB:.1f} GiB ({shares}), plus a few GiB for activations and CUDA."
