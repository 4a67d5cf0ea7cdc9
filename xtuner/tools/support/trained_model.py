"""The model of a config with the weights of a checkpoint, ready to answer: what test, convert and chat start from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from xtuner.data.text import build_template
from xtuner.engine.steps.precision import resolve_precision
from xtuner.errors import XTunerError
from xtuner.log import get_logger
from xtuner.model.files.weight_files import check_exists
from xtuner.registry import build
from xtuner.tools.support.families import family_of, is_quantized


def build_trained(
    cfg: Any,
    checkpoint: str | None,
    device: torch.device,
    precision: str | None = None,
    base: str | None = None,
) -> Any:
    """Builds a config's model, loads a checkpoint and puts the model into eval mode on `device`.

    Args:
        cfg: resolved config with a `model` whose class has ``load_checkpoint(path, required)`` and ``trainable``.
        checkpoint: weights; every trained part must be in it. None = as the config builds it.
        device: where it computes.
        precision: number format of all weights: ``auto``, ``bf16``, ``fp16``, ``fp32``, or ``saved`` = each as its own
            files have it; None = the config's.
        base: where the checkpoint that `checkpoint` stands on is now, if not where it was.

    Raises:
        XTunerError: a part cannot be built, the checkpoint does not fit, or it stands on other weights than these.
    """
    if checkpoint:
        check_exists(checkpoint)
        if is_quantized(Path(checkpoint)):
            return _quantized(cfg, Path(checkpoint), device, precision)
    # what training started from is in the checkpoint, or in what that says it stands on
    model = build(cfg.model, pretrained_pth=None) if checkpoint else build(cfg.model)
    precision = precision or cfg.get("precision") or "auto"
    if precision != "saved":
        dtype = resolve_precision(precision, device).dtype
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)
    if checkpoint:
        configured = cfg.model.get("pretrained_pth")
        model.load_checkpoint(checkpoint, required=model.trainable, base=base, configured=configured)
    else:
        get_logger().warning(
            "no --checkpoint given: the trained parts keep the weights that the config starts them with"
        )
    return model.to(device).eval()


def _quantized(cfg: Any, folder: Path, device: torch.device, precision: str | None) -> Any:
    """The model of an exported folder whose weights are packed: the folder alone says how."""
    precision = precision or cfg.get("precision") or "auto"
    dtype = None if precision == "saved" else resolve_precision(precision, device).dtype
    return family_of(folder).load_assistant(folder, device, dtype).model


def load_assistant(
    model: str,
    checkpoint: str | None,
    device: torch.device,
    precision: str = "auto",
    overrides: Mapping[str, Any] | None = None,
    base: str | None = None,
    **loading: Any,
) -> Any:
    """Returns what answers conversations with a trained model.

    Args:
        model: an exported folder, or a config's name or path.
        checkpoint: with a config: its weights; None = as the config builds it.
        device: where it computes.
        precision: number format of all weights: ``auto``, ``bf16``, ``fp16`` or ``fp32``.
        overrides: with a config: of its settings.
        base: with a checkpoint: see `build_trained`.
        loading: with an exported folder: further arguments of its ``from_pretrained``, ``quantization_config`` say.

    Raises:
        XTunerError: `model` is neither, or an argument does not go with it.
    """
    resolved = resolve_precision(precision, device)
    if Path(model).is_dir():
        if checkpoint or overrides or base:
            raise XTunerError(
                "--checkpoint, --base and --cfg-options work with a config only: drop them, as an exported folder is "
                "complete."
            )
        return family_of(Path(model)).load_assistant(model, device, resolved.dtype, **loading)
    if loading:
        raise XTunerError(f"{', '.join(loading)}: works with an exported folder only; convert the checkpoint first.")
    from xtuner.config import find_config, load_config

    try:
        config = find_config(model)
    except XTunerError as error:
        raise XTunerError(f"'{model}' is no exported folder, and {error}") from error
    cfg = load_config(config, dict(overrides or {}))
    if cfg.evaluation.get("prompt_template") is not None:
        # a name that is not known shows before minutes go into loading
        build_template(cfg.evaluation.prompt_template, cfg.evaluation.get("tokenizer"))
    return build(cfg.evaluation, model=build_trained(cfg, checkpoint, device, resolved.name, base)).assistant
