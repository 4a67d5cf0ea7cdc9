"""The benchmarks of a config: which are there, and what tells two evaluations apart."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xtuner.errors import XTunerError, nearest
from xtuner.registry import build

_SAMPLE, _SAMPLES = 2**16, 2**8
"""Bytes of a sample of a checkpoint's file, and about how many samples of each file."""


def find_benchmarks(nodes: Sequence[Mapping[str, Any]], asked: str | None) -> tuple[list[Any], dict[str, list[str]]]:
    """Builds the benchmarks of a config.

    Args:
        nodes: the config's.
        asked: names with commas between, or None for all.

    Returns:
        Those whose files are there, and the absent files of the others by name.

    Raises:
        XTunerError: a name that the config does not have, or two benchmarks of one name.
    """
    benchmarks = {node["name"]: build(node) for node in nodes}
    if len(benchmarks) != len(nodes):
        raise XTunerError(
            "two of the config's benchmarks have the same name: their results would overwrite each other."
        )
    names = list(benchmarks) if asked is None else [name.strip() for name in asked.split(",") if name.strip()]
    for name in names:
        if name not in benchmarks:
            known = ", ".join(benchmarks) or "none"
            raise XTunerError(f"the config has no benchmark '{name}'.{nearest(name, benchmarks)} It has: {known}.")
    absent = {name: benchmarks[name].missing_files() for name in names}
    missing = {name: paths for name, paths in absent.items() if paths}
    return [benchmarks[name] for name in names if name not in missing], missing


def run_facts(cfg: Any, benchmark: str) -> dict[str, Any]:
    """Returns the config that a benchmark's answers depend on: its name, and a hash to tell evaluations apart."""
    node = next(node for node in cfg.benchmarks if node["name"] == benchmark)
    # batch size and worker processes do not change answers, so a killed run may go on with others
    settings = {key: value for key, value in cfg.evaluation.items() if key not in ("batch_size", "num_workers")}
    described = json.dumps([cfg.model, settings, node, cfg.get("precision")], sort_keys=True, default=str)
    return {
        "config": Path(cfg.filename).stem,
        "config_sha256": hashlib.sha256(described.encode()).hexdigest()[:16],
    }


def checkpoint_facts(checkpoint: str) -> dict[str, Any]:
    """Returns the checkpoint that answers depend on: its path, and a hash to tell two apart."""
    return {"checkpoint": str(checkpoint), "checkpoint_sha256": _fingerprint(Path(checkpoint))}


def _fingerprint(path: Path) -> str:
    """Hash of the sizes of a checkpoint's files and of samples of their content.

    Samples, as reading tens of gigabytes would take minutes: training changes every weight, so that two checkpoints
    differ in them. Names and times of files do not matter, a copy has the same hash.
    """
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        if not file.exists():
            continue
        size = file.stat().st_size
        digest.update(size.to_bytes(8, "big"))
        step = max(_SAMPLE, size // _SAMPLES)
        with file.open("rb") as handle:
            for start in range(0, size, step):
                handle.seek(start)
                digest.update(handle.read(_SAMPLE))
    return digest.hexdigest()[:16]
