"""Facts of the machine: card, versions, peak matrix product and copy."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from functools import partial
from typing import Any

import torch

from tools.gpu.setting import Setting
from tools.gpu.stages import Rows
from xtuner.model.flops import peak_flops

PACKAGES = ("torch", "transformers", "mmengine", "deepspeed", "triton", "timm", "peft", "liger_kernel", "flash_attn")


def rows(setting: Setting) -> Rows:
    """Returns the stage's rows."""
    names = ("bf16",) if setting.tiny else ("bf16", "fp16", "fp32")
    return [
        ("versions", partial(versions, setting)),
        *((f"matrix product, {name}", partial(product, setting, name)) for name in names),
        ("copy on the device", partial(copy, setting)),
        ("copy from pinned memory", partial(from_host, setting)),
    ]


def versions(setting: Setting) -> dict[str, Any]:
    """Card, memory, processor cores and packages."""
    found = {"python": platform.python_version(), "cores": os.cpu_count()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    if setting.on_gpu:
        card = torch.cuda.get_device_properties(0)
        found |= {"card": card.name, "GB": round(card.total_memory / 1e9, 1), "CUDA": torch.version.cuda}
        found["NCCL"] = ".".join(map(str, torch.cuda.nccl.version()))
    return found


def seconds_of(setting: Setting, work: Any, repeats: int) -> float:
    """Seconds of one run of `work`, after one to warm up."""
    work()
    if setting.on_gpu:
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    if setting.on_gpu:
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


def product(setting: Setting, name: str) -> dict[str, Any]:
    """FLOP/s of a large square matrix product, beside the data sheet's."""
    side = 256 if setting.tiny else 8192
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[name]
    left, right = (torch.randn(side, side, device=setting.device).to(dtype) for _ in range(2))
    rate = 2 * side**3 / seconds_of(setting, lambda: left @ right, 2 if setting.tiny else 20)
    peak = peak_flops(setting.device, name)
    return {"TFLOP/s": rate / 1e12, "data sheet": peak / 1e12 if peak else None, "share": rate / peak if peak else None}


def copy(setting: Setting) -> dict[str, Any]:
    """Bytes per second read and written by a copy."""
    size = 2**20 if setting.tiny else 2**32
    source = torch.zeros(size, dtype=torch.uint8, device=setting.device)
    target = torch.empty_like(source)
    return {"GB/s": 2 * size / seconds_of(setting, lambda: target.copy_(source), 2 if setting.tiny else 10) / 1e9}


def from_host(setting: Setting) -> dict[str, Any]:
    """Bytes per second from pinned host memory to the card."""
    setting.need_gpu("pinned memory")
    size = 2**20 if setting.tiny else 2**30
    source = torch.zeros(size, dtype=torch.uint8, pin_memory=True)
    target = torch.empty(size, dtype=torch.uint8, device=setting.device)
    return {"GB/s": size / seconds_of(setting, lambda: target.copy_(source, non_blocking=True), 5) / 1e9}
