"""Names of weights in a layer that has an adapter of peft."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

BASE = ".base_layer."
"""What peft puts into the names of an adapted layer's own weights."""


def to_adapted_names(state: Mapping[str, torch.Tensor], own: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Renames plain weights of layers that have an adapter here: ``q_proj.weight`` → ``q_proj.base_layer.weight``.

    Args:
        state: weights by name, of a model with or without adapters.
        own: the names of the model to load into.
    """
    plain = {name.replace(BASE, "."): name for name in own if BASE in name}
    return {plain.get(name, name) if name not in own else name: value for name, value in state.items()}
