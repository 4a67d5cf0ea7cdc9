"""Where weights go as they are read, so that no rank holds a second copy of a large model in host memory."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch

_STATE = threading.local()


@contextlib.contextmanager
def load_onto(device: torch.device) -> Iterator[None]:
    """Under this context `build_llm` reads weights straight onto a GPU; files are memory-mapped, one copy a node."""
    before = getattr(_STATE, "device", None)
    _STATE.device = device
    try:
        yield
    finally:
        _STATE.device = before


def loading_arguments() -> dict[str, Any]:
    """Arguments of ``from_pretrained`` for the place that `load_onto` named; none on the CPU and under ZeRO-3."""
    from transformers.integrations import is_deepspeed_zero3_enabled

    device = getattr(_STATE, "device", None)
    if device is None or device.type != "cuda" or is_deepspeed_zero3_enabled():
        return {}
    return {"device_map": {"": device}}


def partition_while_loading(deepspeed_settings: dict[str, Any], batch_size: int, dtype_name: str) -> Any:
    """Makes transformers split weights over the ranks as it loads them (ZeRO-3), as long as the result is kept.

    Rank 0 alone reads the values, layer by layer; no rank ever holds the whole model.

    Args:
        deepspeed_settings: with stage 3.
        batch_size: samples per micro-batch and process; DeepSpeed wants to know it.
        dtype_name: ``bf16``, ``fp16`` or ``fp32``.
    """
    from transformers.integrations import HfDeepSpeedConfig

    return HfDeepSpeedConfig(
        {
            "zero_optimization": deepspeed_settings["zero_optimization"],
            "train_micro_batch_size_per_gpu": batch_size,
            "bf16": {"enabled": dtype_name == "bf16"},
            "fp16": {"enabled": dtype_name == "fp16"},
        }
    )
