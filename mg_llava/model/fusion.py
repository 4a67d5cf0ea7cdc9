"""Fusing the last high-resolution map into the low-resolution tokens: Conv-Gate and what it was compared with.

All take low (B, V, C) tokens, row by row over an h × w grid, and high (B, C', h, w) on the same grid, and say
the width of what they return in `out_channels`. Source: MG-LLaVA (arXiv 2406.17770), section 3.2 and its
ablation of fusions.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn


class _ConvFusion(nn.Module):
    """The two convolution branches that the fusions with convolutions share."""

    provided_by_parent: ClassVar[tuple[str, ...]] = ("low_channels", "high_channels")

    def __init__(self, low_channels: int, high_channels: int) -> None:
        super().__init__()
        self.low_conv = nn.Conv2d(low_channels, low_channels, 7, padding=3, groups=low_channels)
        self.low_proj = nn.Conv2d(low_channels, low_channels, 1)
        self.high_conv = nn.Conv2d(high_channels, high_channels, 1)
        self.high_proj = nn.Conv2d(high_channels, low_channels, 1)
        self.act = nn.GELU()
        self._init_convolutions()

    def _init_convolutions(self) -> None:
        # both branches add nothing at first, so training starts from the plain low-resolution tokens
        for conv in (self.low_proj, self.high_proj):
            nn.init.zeros_(conv.weight)
        for conv in (self.low_conv, self.high_conv):
            nn.init.xavier_uniform_(conv.weight)
        for name, parameter in self.named_parameters():
            if name.endswith(".bias"):
                nn.init.zeros_(parameter)

    def branches(self, low_tokens: torch.Tensor, high_map: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns low + proj(GELU(conv 7×7(low))) and proj(GELU(conv 1×1(high))), low' and high', each (B, V, C)."""
        dtype = self.low_conv.weight.dtype
        low_tokens, high_map = low_tokens.to(dtype), high_map.to(dtype)
        low_map = low_tokens.transpose(1, 2).unflatten(2, high_map.shape[-2:])
        low_map = low_map + self.low_proj(self.act(self.low_conv(low_map)))
        high_map = self.high_proj(self.act(self.high_conv(high_map)))
        return _to_tokens(low_map), _to_tokens(high_map)


class _GatedFusion(_ConvFusion):
    """The branches and a gate: one number per picture."""

    def __init__(self, low_channels: int, high_channels: int) -> None:
        super().__init__(low_channels, high_channels)
        self.gate = nn.Sequential(
            nn.Linear(2 * low_channels, low_channels // 2), nn.GELU(), nn.Linear(low_channels // 2, 1)
        )

    def gate_value(self, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        """Returns g = tanh(MLP([mean of low' ; mean of high'])), (B, 1, 1), from two (B, V, C)."""
        means = torch.cat([low.mean(dim=1), high.mean(dim=1)], dim=-1)
        return torch.tanh(self.gate(means)).unsqueeze(1)


class ConvGateFusion(_GatedFusion):
    """MG-LLaVA's Conv-Gate fusion: low' + g·high'.

    As initialised it is the identity on the low-resolution tokens, yet trainable, since g ≠ 0.

    Args:
        low_channels: C, of the low-resolution tokens.
        high_channels: C', of the high-resolution map.

    Attributes:
        out_channels: C.

    Examples:
        A grid of 2 x 2 tokens; nothing has been learned yet, so the tokens come back as they are:

        >>> low_tokens, high_map = torch.randn(2, 4, 8), torch.randn(2, 16, 2, 2)
        >>> fused = ConvGateFusion(low_channels=8, high_channels=16)(low_tokens, high_map)
        >>> torch.equal(fused, low_tokens)
        True
    """

    def __init__(self, low_channels: int, high_channels: int) -> None:
        super().__init__(low_channels, high_channels)
        self.out_channels = low_channels

    def forward(self, low_tokens: torch.Tensor, high_map: torch.Tensor) -> torch.Tensor:
        """(B, V, C) and (B, C', h, w) with h·w = V → (B, V, C)."""
        low, high = self.branches(low_tokens, high_map)
        return low + self.gate_value(low, high) * high


class GatedConcatFusion(_GatedFusion):
    """Ablation: [low' ; g·high'] along channels; arguments as `ConvGateFusion`.

    Attributes:
        out_channels: 2C.
    """

    def __init__(self, low_channels: int, high_channels: int) -> None:
        super().__init__(low_channels, high_channels)
        self.out_channels = 2 * low_channels

    def forward(self, low_tokens: torch.Tensor, high_map: torch.Tensor) -> torch.Tensor:
        """(B, V, C) and (B, C', h, w) with h·w = V → (B, V, 2C)."""
        low, high = self.branches(low_tokens, high_map)
        return torch.cat([low, self.gate_value(low, high) * high], dim=-1)


class ConvConcatFusion(_ConvFusion):
    """Ablation: [low' ; high'] along channels, no gate; arguments as `ConvGateFusion`.

    Attributes:
        out_channels: 2C.
    """

    def __init__(self, low_channels: int, high_channels: int) -> None:
        super().__init__(low_channels, high_channels)
        self.out_channels = 2 * low_channels

    def forward(self, low_tokens: torch.Tensor, high_map: torch.Tensor) -> torch.Tensor:
        """(B, V, C) and (B, C', h, w) with h·w = V → (B, V, 2C)."""
        return torch.cat(self.branches(low_tokens, high_map), dim=-1)


class ConcatFusion(nn.Module):
    """Ablation: [low ; high] along channels, nothing learned; arguments as `ConvGateFusion`.

    Attributes:
        out_channels: C + C'.
    """

    provided_by_parent: ClassVar[tuple[str, ...]] = ("low_channels", "high_channels")

    def __init__(self, low_channels: int, high_channels: int) -> None:
        super().__init__()
        self.out_channels = low_channels + high_channels

    def forward(self, low_tokens: torch.Tensor, high_map: torch.Tensor) -> torch.Tensor:
        """(B, V, C) and (B, C', h, w) with h·w = V → (B, V, C + C')."""
        return torch.cat([low_tokens, _to_tokens(high_map).to(low_tokens.dtype)], dim=-1)


def _to_tokens(feature_map: torch.Tensor) -> torch.Tensor:
    return feature_map.flatten(2).transpose(1, 2)
