"""From a command's arguments to what answers: an assistant, and a detector for pictures without boxes."""

from __future__ import annotations

import argparse
from typing import Any

from xtuner.errors import XTunerError
from xtuner.log import console


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
