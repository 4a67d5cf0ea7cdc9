"""From a command's arguments to what answers: an assistant or another engine, and a detector for pictures without
boxes.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from xtuner.errors import XTunerError
from xtuner.log import console
from xtuner.tools.support.arguments import OWN


def load_assistant(args: argparse.Namespace) -> Any:
    """Returns the assistant of an exported folder or of a config with a checkpoint.

    Args:
        args: ``model``, ``checkpoint``, ``base``, ``cfg_options``, ``device``, ``precision`` and ``quantization``.

    Raises:
        XTunerError: neither a folder nor a config, or arguments that do not go together.
    """
    import torch

    from xtuner.config import parse_overrides
    from xtuner.tools.support.trained_model import load_assistant

    device = torch.device(args.device or _default_device())
    return load_assistant(
        args.model,
        args.checkpoint,
        device,
        args.precision,
        parse_overrides(args.cfg_options),
        args.base,
        **_quantization(args.quantization),
    )


def load_detector(args: argparse.Namespace) -> Any:
    """Returns the detector of the config ``args.detector``, or None, and says so, where it cannot be had."""
    import torch

    from xtuner.config import load_config
    from xtuner.registry import build

    node = load_config(args.detector).detector
    try:
        return build(node, device=torch.device(args.device or _default_device()))
    except XTunerError as error:
        console.print(f"no detector is available, so pictures get no boxes: {error}", style="yellow", markup=False)
        return None


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
        raise XTunerError("--base goes with checkpoints: drop it, as an exported folder is complete.")
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


def look_for_checkpoint(args: argparse.Namespace) -> None:
    """Refuses weights of ``xtuner test`` that are not there, before anything is started or loaded.

    Raises:
        XTunerError: nothing is at ``args.checkpoint``.
    """
    from xtuner.model.files.weight_files import check_exists

    if args.checkpoint and not args.endpoint and not args.score_only:
        check_exists(args.checkpoint)


def _quantization(bits: str | None) -> dict[str, Any]:
    if bits is None:
        return {}
    import importlib.util

    from transformers import BitsAndBytesConfig

    if importlib.util.find_spec("bitsandbytes") is None:
        raise XTunerError("--quantization needs the package bitsandbytes: run 'pip install bitsandbytes'.")
    return {"quantization_config": BitsAndBytesConfig(load_in_4bit=bits == "4bit", load_in_8bit=bits == "8bit")}


def _default_device() -> str:
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
