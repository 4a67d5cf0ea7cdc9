"""The projector: from a tower's width to the language model's."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

import torch
from torch import nn

from xtuner.errors import XTunerError


class MLPProjector(nn.Module):
    """Linear, then (GELU, Linear) `depth` − 1 times: (..., C) → (..., D).

    Args:
        in_channels: width C of what comes in.
        out_channels: width D of the language model, also of the hidden layers.
        depth: number of linear layers; LLaVA-1.5 and MG-LLaVA use 2.

    Raises:
        XTunerError: `depth` below 1.
    """

    provided_by_parent: ClassVar[tuple[str, ...]] = ("in_channels", "out_channels")

    def __init__(self, in_channels: int, out_channels: int, depth: int = 2) -> None:
        super().__init__()
        if depth < 1:
            raise XTunerError(f"the projector's depth is {depth}: expected 1 or more linear layers.")
        self.in_channels = in_channels
        self.out_channels = out_channels
        layers: list[nn.Module] = []
        for width_in, width_out in pairwise([in_channels] + [out_channels] * depth):
            layers += [nn.Linear(width_in, width_out), nn.GELU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(..., C) → (..., D)."""
        return self.layers(tokens)
