"""Layers that bitsandbytes keeps in 4 or 8 bits: weights put into them, and what they were made from."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from xtuner.model.files.frozen import remember_values

_KINDS = ("Params4bit", "Int8Params")


def quantized_layers(part: nn.Module) -> dict[str, nn.Module]:
    """Returns the layers of a part whose weight is quantised, by name."""
    named = part.named_modules()
    return {name: module for name, module in named if type(getattr(module, "weight", None)).__name__ in _KINDS}


def whole_shape(layer: Any) -> tuple[int, ...]:
    """Returns the shape of the weight that a quantised layer was made from."""
    state = getattr(layer.weight, "quant_state", None)
    return tuple(layer.weight.shape if state is None else state.shape)


def put_weight(layer: Any, value: torch.Tensor) -> None:
    """Quantises `value` into a layer, with the layer's settings, on its device; it remembers what it was made from.

    Args:
        layer: of `quantized_layers`, already on its device.
        value: (out, in).
    """
    old = layer.weight
    remember_values(layer, value)
    if hasattr(old, "quant_state"):
        whole = value.to(old.quant_state.dtype)
        settings = {name: getattr(old, name) for name in ("blocksize", "compress_statistics", "quant_type")}
        weight = type(old)(whole, requires_grad=False, quant_storage=old.quant_storage, module=layer, **settings)
    else:
        weight = type(old)(value.to(torch.float16), requires_grad=False, has_fp16_weights=False)
    layer.weight = weight.to(old.device)
