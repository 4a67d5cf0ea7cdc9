"""What is kept for the backward pass, on numbers worked by hand and against a real pass."""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from tests.tiny_parts import tiny_model
from xtuner.model.activations import kept_bytes

TOWERS = ("low_res_encoder", "high_res_encoder")


class Layer(GradientCheckpointingLayer):
    """Keeps its input and the result of the first map: 4·n·(8 + 32) bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 32), nn.Linear(32, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.up(x).relu())


def layers(recompute: bool, trained: tuple[int, ...] = (0, 1, 2)) -> nn.Module:
    with torch.device("meta"):
        model = nn.Sequential(*(Layer() for _ in range(3)))
    for number, layer in enumerate(model):
        layer.gradient_checkpointing = recompute
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
        layer.requires_grad_(number in trained)
    return model


def kept(model: nn.Module) -> int:
    return kept_bytes(model, torch.zeros(5, 8, device="meta"))


def test_by_hand() -> None:
    # relu and the second map keep the same tensor
    assert kept(layers(False)) == 3 * 4 * 5 * (8 + 32)
    # frozen layers below keep nothing
    assert kept(layers(False, (2,))) == 4 * 5 * (8 + 32)


def test_recomputed() -> None:
    # every layer's input, and of one layer the rest
    assert kept(layers(True)) == 3 * 4 * 5 * 8 + 4 * 5 * 32
    model = layers(True)
    model.eval()
    assert kept(model) == kept(layers(False))
    assert all(layer.gradient_checkpointing for layer in model)


@pytest.mark.parametrize("name", TOWERS)
def test_as_a_real_pass(name: str, tmp_path: Path) -> None:
    model = tiny_model(tmp_path, trainable=TOWERS, activation_checkpointing=False).train()
    # the CPU's kernel keeps other things than a GPU's
    model.low_res_encoder.clip.set_attn_implementation("eager")
    part: Any = getattr(model, name)
    for block in part.modules():
        if hasattr(block, "drop_path"):
            block.drop_path = nn.Identity()
    found: dict[int, torch.Tensor] = {}
    weights = {weight.untyped_storage().data_ptr() for weight in (*part.parameters(), *part.buffers())}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if (place := tensor.untyped_storage().data_ptr()) not in weights:
            found[place] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        part(part.blank_picture())
    expected = sum(tensor.untyped_storage().nbytes() for tensor in found.values())
    shape = deepcopy(part).to("meta")
    assert kept_bytes(shape, part.blank_picture().to("meta")) == expected


@pytest.mark.parametrize("name", TOWERS)
def test_recomputing_an_encoder_takes_less(name: str, tmp_path: Path) -> None:
    sizes = []
    for share in (False, True):
        model = tiny_model(tmp_path, trainable=TOWERS, activation_checkpointing=share).train()
        part: Any = deepcopy(getattr(model, name)).to("meta")
        sizes.append(kept_bytes(part, part.blank_picture().to("meta")))
    assert 0 < sizes[1] < sizes[0]
