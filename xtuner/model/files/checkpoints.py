"""Loading weights into a model's parts with nothing hidden, and writing files so that no half one stays."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from xtuner.errors import XTunerError, counted
from xtuner.log import get_logger
from xtuner.model.files.adapter_names import to_adapted_names
from xtuner.model.files.quantized import put_weight, quantized_layers, whole_shape
from xtuner.model.files.writing import disk_errors, write_safetensors

_SHOWN = 12
_ADAPTERS = " adapters"
_NO_LLM = ("the part 'llm' is absent", f"the part 'llm{_ADAPTERS}' is absent")
"""How the only problems of a checkpoint of stage 1, which trains all but the language model, begin."""


@dataclass(frozen=True)
class LoadReport:
    """What loading did.

    Attributes:
        loaded_parts: parts that were loaded, each as completely as asked for.
        missing: names of these parts that the checkpoint lacks. Always empty: such a checkpoint is refused.
        unexpected: names of the checkpoint that the model lacks.
    """

    loaded_parts: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    def log(self, source: str) -> None:
        """Writes one line for what was loaded, and a warning for what was left over."""
        get_logger().info("loaded %s from %s", ", ".join(self.loaded_parts) or "nothing", source)
        if self.unexpected:
            count, some = len(self.unexpected), ", ".join(self.unexpected[:3])
            get_logger().warning("%s: unknown weights ignored: %d, e.g. %s", source, count, some)


def load_parts(
    parts: Mapping[str, nn.Module],
    state: Mapping[str, torch.Tensor],
    required: Collection[str],
    source: str = "the checkpoint",
    adapters: Mapping[str, Collection[str]] | None = None,
    partial: Collection[str] = (),
) -> LoadReport:
    """Loads `state` into a model's parts: all of it or, if anything does not fit, nothing.

    Args:
        parts: the model's parts by name; weights are named ``<part>.<name within it>``.
        state: weights by full name.
        required: parts that must be there; others that the checkpoint has none of stay as they are.
        source: where `state` is from, for messages.
        adapters: parts that are trained by adapters, with the names of these weights within the part. Such a part's
            adapters and its other weights may each come alone; where it is required its adapters are.
        partial: parts of which `state` need only hold some weights: the model has the others already.

    Raises:
        XTunerError: a required part is absent, a part is incomplete, or a weight has another shape; the message
            names all of them.
    """
    own = _own_tensors(parts, adapters or {})
    quantized = {id(layer.weight): layer for part in parts.values() for layer in quantized_layers(part).values()}

    def shape(tensor: torch.Tensor) -> tuple[int, ...]:
        return whole_shape(quantized[id(tensor)]) if id(tensor) in quantized else _shape(tensor)

    if adapters:
        state = to_adapted_names(state, {name: tensor for tensors in own.values() for name, tensor in tensors.items()})
        required = [f"{name}{_ADAPTERS}" if name in adapters else name for name in required]
    found = {part: [name for name in tensors if name in state] for part, tensors in own.items()}
    missing: list[str] = []
    problems: list[str] = []
    for part, tensors in own.items():
        absent = [] if part in partial and found[part] else _absent(tensors, found[part])
        if found[part] and absent:
            problems.append(
                f"the part '{part}' is incomplete: it lacks {counted(len(absent), 'weights')}, e.g. {absent[0]}"
            )
        elif absent and part in required:
            problems.append(f"the part '{part}' is absent ({counted(len(absent), 'weights')})")
        missing += absent if found[part] or part in required else []
        problems += [
            f"{name} is {tuple(state[name].shape)} in the checkpoint and {shape(tensors[name])} in this model"
            for name in found[part]
            if tuple(state[name].shape) != shape(tensors[name])
        ]
    if problems:
        raise XTunerError(_refusal(source, [*_widths(own, state), *problems], state))
    for part, names in found.items():
        for name in names:
            layer = quantized.get(id(own[part][name]))
            _copy(own[part][name], state[name]) if layer is None else put_weight(layer, state[name])
    known = {name for tensors in own.values() for name in tensors}
    unexpected = tuple(sorted(name for name in state if name not in known))
    return LoadReport(tuple(part for part in own if found[part]), tuple(missing), unexpected)


def refuse_left_adapters(report: LoadReport, source: str | Path) -> None:
    """Refuses a checkpoint of adapters for a model that has none: without them it is another model.

    Raises:
        XTunerError: the checkpoint holds adapters that the model has no place for.
    """
    left = sorted({name.partition(".")[0] for name in report.unexpected if ".lora_" in name})
    if left:
        raise XTunerError(
            f"'{source}' holds adapters of {', '.join(left)}, this config has none or others: set llm_lora or "
            "visual_encoder_lora as in its training, or merge them first (xtuner convert pth_to_hf, then hf_to_pth)."
        )


def _own_tensors(
    parts: Mapping[str, nn.Module], adapters: Mapping[str, Collection[str]]
) -> dict[str, dict[str, torch.Tensor]]:
    """Tensors by full name of each part; adapters count as a part of their own."""
    own: dict[str, dict[str, torch.Tensor]] = {}
    for part, module in parts.items():
        trained = adapters.get(part, ())
        tensors = _tensors(module)
        own[part] = {f"{part}.{name}": tensor for name, tensor in tensors.items() if name not in trained}
        if trained:
            own[f"{part}{_ADAPTERS}"] = {f"{part}.{name}": tensors[name] for name in trained}
    return own


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    tensors = nn.Module.state_dict(module, keep_vars=True)
    # what bitsandbytes adds to a weight belongs to the weight
    added = tuple(f"{name}.{key}" for name in quantized_layers(module) for key in ("weight.", "weight_format", "SCB"))
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(added)} if added else tensors


def _shape(tensor: torch.Tensor) -> tuple[int, ...]:
    # under ZeRO-3 a weight's own shape is that of nothing
    return tuple(getattr(tensor, "ds_shape", tensor.shape))


def _absent(tensors: Mapping[str, torch.Tensor], found: Collection[str]) -> list[str]:
    # tied weights are saved once, under one of their names
    loaded = {id(tensors[name]) for name in found}
    return [name for name, tensor in tensors.items() if id(tensor) not in loaded]


def _widths(own: Mapping[str, Mapping[str, torch.Tensor]], state: Mapping[str, torch.Tensor]) -> list[str]:
    """Names the two widths where a checkpoint's projector was made for a language model of another width."""
    last = [name for name in own.get("projector", {}) if name.endswith(".bias") and name in state][-1:]
    there, here = (_shape(found[last[0]])[0] for found in (state, own["projector"])) if last else (0, 0)
    if there == here:
        return []
    return [f"its language model is {there} wide, this model's is {here}: it was trained with another language model"]


def _refusal(source: str, problems: list[str], state: Mapping[str, torch.Tensor]) -> str:
    shown = [f"  - {line}" for line in problems[:_SHOWN]]
    if len(problems) > _SHOWN:
        shown.append(f"  - and {len(problems) - _SHOWN} more")
    parts = sorted({name.split(".")[0] for name in state})
    held = ", ".join(parts) or "nothing"
    if parts and all(line.startswith(_NO_LLM) for line in problems):
        return (
            f"{source} does not fit this model: this is a stage-1 checkpoint, which holds {held}, but not the language "
            "model, which this config trains: use a checkpoint of stage 2, or the config of stage 1 (pretrain)."
        )
    return "\n".join(
        [
            f"{source} does not fit this model:",
            *shown,
            f"It holds {held}: use a checkpoint of this model's kind and size, or set the language model and "
            "the encoders to those it was trained with.",
        ]
    )


def _copy(target: torch.Tensor, value: torch.Tensor) -> None:
    if not hasattr(target, "ds_id"):
        with torch.no_grad():
            target.copy_(value)
        return
    # under ZeRO-3 each rank holds a piece: gather, write on rank 0, scatter
    import deepspeed

    with deepspeed.zero.GatheredParameters([target], modifier_rank=0), torch.no_grad():
        if torch.distributed.get_rank() == 0:
            target.copy_(value)


def save_file_atomic(obj: Any, path: str | Path) -> None:
    """Saves to a temporary file beside `path`, then renames it: a cut-off run leaves the old file or the new one.

    Args:
        obj: tensors by name for a .safetensors path, else anything that ``torch.save`` takes.
        path: target; its folder is created.

    Raises:
        XTunerError: the disk is full or cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            if path.suffix == ".safetensors":
                write_safetensors({name: value.detach().cpu().contiguous() for name, value in obj.items()}, temporary)
            else:
                torch.save(obj, temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
