"""``xtuner convert split FOLDER SAVE_PATH``: a model folder again, with its weights in smaller files."""

from __future__ import annotations

import argparse
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from xtuner.errors import XTunerError

HELP = "a model folder to one with smaller (or larger) files of weights"
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
_WEIGHTS = re.compile(r".*\.(safetensors|bin|pth|pt)(\.index\.json)?$")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``xtuner convert split``."""
    parser.add_argument("folder", help="model folder in the format of transformers")
    parser.add_argument("save_path", help="new folder")
    parser.add_argument(
        "--max-shard-size", default="2GB", metavar="SIZE", help="largest size of one file (default: 2GB)"
    )


def run(args: argparse.Namespace) -> int:
    """Splits; returns the exit code."""
    from xtuner.model.files.weight_files import open_weights

    size = parse_size(args.max_shard_size)
    weights = open_weights(args.folder)
    copy_with_weights(
        Path(args.folder), Path(args.save_path), ((name, weight.load()) for name, weight in weights.items()), size
    )
    return 0


def parse_size(text: str) -> int:
    """Returns the bytes of ``2GB``, ``500MB`` or ``10KB``.

    Raises:
        XTunerError: not of that form.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]B)", text.strip().upper())
    size = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    if size < 1:
        raise XTunerError(f"the size '{text}' cannot be read: expected a number with KB, MB or GB, e.g. 2GB.")
    return size


def copy_with_weights(source: Path, target: Path, weights: Iterable[tuple[str, Any]], max_bytes: int) -> None:
    """Copies a model folder with other weights, or the same in files of another size.

    Args:
        source: folder to copy; its files of weights are left out.
        target: must be new or empty.
        weights: pairs of name and tensor.
        max_bytes: largest file.

    Raises:
        XTunerError: the target holds something.
    """
    from xtuner.log import get_logger
    from xtuner.model.files.shards import ShardWriter

    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise XTunerError(f"'{target}' exists and is not empty: choose a new folder, nothing was overwritten.")
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        shutil.copytree(source, temporary, ignore=lambda _, names: [n for n in names if _WEIGHTS.match(n)])
        writer = ShardWriter(temporary, 0, max_bytes)
        for name, tensor in weights:
            writer.add(name, tensor)
        writer.finish()
        shutil.rmtree(target, ignore_errors=True)
        temporary.replace(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    get_logger().info("%s: %.1f MB of weights", target, writer.total_bytes / 1e6)
