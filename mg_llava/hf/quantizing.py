"""Quantised folders: the language model's linear layers in few bits, every other weight as it was.

The format is that of compressed-tensors, which transformers and vLLM read. No data is needed: weights are rounded
to the nearest of the values that their group's scale allows.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mg_llava.hf.configuration import MGLLaVAConfig
from mg_llava.hf.loading import check_exported
from mg_llava.hf.parts import PART_NAMES, build_text
from mg_llava.hf.quantization import check_library, quantization_of
from xtuner.errors import XTunerError, nearest
from xtuner.model.files.shards import ShardWriter
from xtuner.model.files.weight_files import open_weights
from xtuner.model.files.writing import disk_errors
from xtuner.model.meta import meta_init

SCHEMES = ("W4A16", "W8A16", "W8A8")
"""Bits of weights (W) and of what they are multiplied with (A); 16 = its own number format."""
_WEIGHT_FILES = ("model*.safetensors", "model.safetensors.index.json")
_GROUPS = (128, 64, 32)
"""Weights that share a scale; kernels know these numbers."""
_LINEAR = "Linear"


def quantize_folder(folder: str | Path, target: str | Path, scheme: str = SCHEMES[0]) -> Path:
    """Writes a folder whose language model is quantised; a cut-off run leaves no half of it.

    The head, the embeddings and the vision side keep their weights. Memory for one file of weights is enough.

    Args:
        folder: as `save_pretrained` writes it.
        target: new folder.
        scheme: one of `SCHEMES`.

    Raises:
        XTunerError: the library is absent, `scheme` is none of `SCHEMES`, `folder` is no exported folder or quantised
            already, `target` exists, or the disk is full or cannot be written.
    """
    folder, target = Path(folder), Path(target)
    if scheme not in SCHEMES:
        raise XTunerError(
            f"there is no scheme '{scheme}': expected one of {', '.join(SCHEMES)}.{nearest(scheme, SCHEMES)}"
        )
    check_exported(folder)
    config = MGLLaVAConfig.from_pretrained(str(folder))
    config.check(str(folder))
    if quantization_of(folder) is not None:
        raise XTunerError(f"'{folder}' is quantised already: quantise the folder that it was made from.")
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise XTunerError(f"'{target}' exists: name a new folder, nothing is overwritten.")
    check_library(f"quantising '{folder}'")
    with disk_errors(target):
        return _write(folder, target, config, scheme)


def _write(folder: Path, target: Path, config: MGLLaVAConfig, scheme: str) -> Path:
    weights = open_weights(folder)
    layers = _linear_layers(config)
    settings = _settings(scheme, [weights[f"{name}.weight"].shape[1] for name in layers])
    config.quantization_config = _described(settings, config)
    config.source = {**config.source, "quantized": {"scheme": scheme, "from": folder.name}}
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.copytree(folder, temporary, ignore=shutil.ignore_patterns(*_WEIGHT_FILES, "config.json"))
    try:
        total = sum(torch.Size(weight.shape).numel() * weight.dtype.itemsize for weight in weights.values())
        writer = ShardWriter(temporary, total)
        for name, weight in weights.items():
            layer = name.removesuffix(".weight")
            if layer in layers:
                for part, tensor in _compress(weight.load(), settings):
                    writer.add(f"{layer}.{part}", tensor)
            else:
                writer.add(name, weight.load())
        writer.finish()
        with (temporary / "README.md").open("a", encoding="utf-8") as card:
            card.write(_note(scheme, folder.name, total, writer.total_bytes))
        # last: a folder with config.json is complete
        config.save_pretrained(temporary)
        if target.exists():
            target.rmdir()
        temporary.replace(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _linear_layers(config: MGLLaVAConfig) -> set[str]:
    """Names of the language model's linear layers, its head left out."""
    with meta_init():
        llm = build_text(config)
    head = llm.get_output_embeddings()
    return {
        f"llm.{name}" for name, module in llm.named_modules() if isinstance(module, nn.Linear) and module is not head
    }


def _settings(scheme: str, widths: list[int]) -> Any:
    """The library's own preset, in groups that divide the width of every layer; one scale a row where none does."""
    from compressed_tensors.quantization import QuantizationStrategy
    from compressed_tensors.quantization.quant_scheme import preset_name_to_scheme

    settings = preset_name_to_scheme(scheme, [_LINEAR])
    weights = settings.weights
    if weights.strategy == QuantizationStrategy.GROUP:
        group = next((size for size in _GROUPS if all(width % size == 0 for width in widths)), None)
        changed = {"group_size": group} if group else {"group_size": None, "strategy": QuantizationStrategy.CHANNEL}
        settings.weights = weights.model_copy(update=changed)
    return settings


def _format(settings: Any) -> str:
    from compressed_tensors.compressors.format import infer_module_format

    return str(infer_module_format(nn.Linear, settings).value)


def _described(settings: Any, config: MGLLaVAConfig) -> dict[str, Any]:
    """``quantization_config`` of config.json: which layers are how; the rest by name, as each reader needs it."""
    from compressed_tensors.quantization import QuantizationConfig, QuantizationStatus

    described = QuantizationConfig(
        config_groups={"group_0": settings},
        format=_format(settings),
        quantization_status=QuantizationStatus.COMPRESSED,
        ignore=["llm.lm_head", *(rf"re:^{part}\." for part in PART_NAMES if part != "llm")],
    )
    return dict(described.model_dump(mode="json"))


def _compress(weight: torch.Tensor, settings: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields what stands in a linear layer's file in place of its ``weight`` (out, in)."""
    from compressed_tensors.compressors import BaseCompressor

    held = {"weight": weight, "weight_scale": _scales(weight, settings.weights)}
    yield from BaseCompressor.get_value_from_registry(_format(settings)).compress(held, settings).items()


def _scales(weight: torch.Tensor, arguments: Any) -> torch.Tensor:
    """The scale of each group, (out, groups), by which its largest weight is the largest value."""
    from compressed_tensors.quantization.utils import calculate_qparams

    groups = weight.reshape(len(weight), -1, arguments.group_size or weight.shape[1])
    scales, _ = calculate_qparams(groups.amin(-1), groups.amax(-1), arguments)
    return scales.to(weight.dtype)


def _note(scheme: str, name: str, before: int, after: int) -> str:
    return (
        f"\n## Quantised\n\nThe linear layers of the language model are in {scheme} (compressed-tensors, rounded to "
        f"the nearest without data), made from `{name}` by `xtuner convert quantize`: {after / 1e9:.2f} GB in place of "
        f"{before / 1e9:.2f} GB.\n"
    )
