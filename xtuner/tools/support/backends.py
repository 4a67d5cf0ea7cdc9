"""``xtuner test --backend``: another engine in this process in the place of this package's own generation."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from xtuner.errors import XTunerError

OWN = "own"
BACKENDS = (OWN, "vllm")


def add_backend(parser: argparse.ArgumentParser) -> None:
    """Adds ``--backend`` and ``--backend-options``."""
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        default=OWN,
        help="what generates the answers of --checkpoint: this package (default), or vLLM in this process, which takes "
        "folders that 'xtuner convert' wrote",
    )
    parser.add_argument(
        "--backend-options",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="settings of --backend vllm, as vLLM's LLM takes them, e.g. max_model_len=2048 tensor_parallel_size=2",
    )


def check_backend(args: argparse.Namespace) -> None:
    """Refuses what would go wrong only after the engine has started, or would start several of them.

    Args:
        args: of ``xtuner test``.

    Raises:
        XTunerError: options that do not go together, several processes, or a checkpoint that is no exported folder.
    """
    from xtuner.launch import torchrun_command

    if args.backend == OWN:
        if args.backend_options:
            raise XTunerError("--backend-options are settings of another engine: add --backend vllm, or drop them.")
        return
    if not args.checkpoint:
        raise XTunerError(f"--backend {args.backend} answers in the place of a --checkpoint's own model: give one.")
    if args.base:
        raise XTunerError("--base goes with checkpoints: drop it. An exported folder is complete.")
    several = int(os.environ.get("WORLD_SIZE") or 1) > 1 or args.launcher == "slurm"
    if several or torchrun_command((), os.environ) is not None:
        raise XTunerError(
            "several processes are asked for (NPROC_PER_NODE, NNODES or --launcher), but vLLM starts its own: run one, "
            "with --backend-options tensor_parallel_size=N for N GPUs."
        )
    path = Path(args.checkpoint)
    if path.exists() and not (path / "config.json").is_file():
        raise XTunerError(
            f"'{path}' is a checkpoint, but vLLM runs exported folders: run `xtuner convert pth_to_hf {args.config} "
            f"{path} FOLDER`, then pass FOLDER as --checkpoint."
        )


def start_backend(args: argparse.Namespace, precision: str) -> Any:
    """Returns the engine, started on the exported folder ``args.checkpoint``.

    Args:
        args: of ``xtuner test``.
        precision: the config's.

    Raises:
        XTunerError: the engine is absent or of another version, the folder is none that it takes, or it cannot start.
    """
    from xtuner.config import parse_overrides
    from xtuner.model.files.weight_files import check_exists
    from xtuner.tools.support.families import family_of

    check_exists(args.checkpoint)
    options = parse_overrides(args.backend_options, "--backend-options")
    return family_of(Path(args.checkpoint)).offline_engine(args.checkpoint, precision, options)
