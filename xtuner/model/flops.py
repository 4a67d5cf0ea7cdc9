"""Floating-point operations of a training step, and what a GPU can do at most: together the MFU of a log.

Only the model's own work counts, as in PaLM's "model FLOPs utilisation" (arXiv 2204.02311, appendix B): what is
computed again for want of memory does not, nor do padding, norms, activations and the optimizer. A linear layer of n
positions takes ``2·n·in·out`` in the forward pass, as much for its input's gradient, and as much again for its weight's
if that is trained. So a trained layer counts three times, a frozen one that gradients pass through twice, an encoder
under no_grad once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import nn

_PEAKS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H800": 989e12,
    "H20": 148e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L20": 119.5e12,
    "L4": 121e12,
    "A40": 150e12,
    "A30": 165e12,
    "A10": 125e12,
    "V100": 125e12,
    "T4": 65e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}
"""Dense 16-bit matrix products of the vendor's data sheets, without sparsity; the first name that fits counts."""

_FORWARD, _INPUT_GRADIENT, _WEIGHT_GRADIENT = 1, 1, 1


class CostWeights(NamedTuple):
    """What a sample's forward and backward pass costs, in any unit.

    Attributes:
        token: of each token in the language model.
        picture: of each picture besides its tokens: encoders, fusion, projector.
        pair: of each two tokens of a sample, for attention.
    """

    token: float
    picture: float
    pair: float

    def of(self, lengths: np.ndarray, num_images: np.ndarray) -> np.ndarray:
        """Returns the cost of samples by their tokens and pictures."""
        return self.token * lengths + self.picture * num_images + self.pair * lengths.astype(np.float64) ** 2


BY_TOKENS = CostWeights(1.0, 0.0, 0.0)
"""The number of tokens as the cost."""


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Returns the peak FLOP/s of `device` in a 16-bit `precision`; None on the CPU, in fp32, for an unknown GPU."""
    if device.type != "cuda" or precision == "fp32":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for known, peak in _PEAKS.items() if known in name), None)


def weight_flops(module: nn.Module, backward: bool = True) -> float:
    """Returns the FLOPs of a module's linear layers and convolutions for one position.

    Args:
        module: with layers that all act on every position; quantised and partitioned ones count by their sizes.
        backward: gradients pass through.
    """
    total = 0.0
    for layer in module.modules():
        times = _FORWARD
        if backward:
            trained = getattr(layer, "weight", None) is not None and layer.weight.requires_grad
            times += _INPUT_GRADIENT + (_WEIGHT_GRADIENT if trained else 0)
        if isinstance(layer, nn.Linear):
            total += times * 2.0 * layer.in_features * layer.out_features
        elif isinstance(layer, nn.Conv2d):
            area = layer.kernel_size[0] * layer.kernel_size[1]
            total += times * 2.0 * layer.in_channels // layer.groups * layer.out_channels * area
    return total


def attention_flops(width: int, layers: int, pairs: float, backward: bool = True) -> float:
    """Returns the FLOPs of the products of queries with keys and of weights with values.

    Args:
        width: heads times head width.
        layers: number of layers.
        pairs: of a query and a key that it sees; half the square of a length where attention is causal.
        backward: gradients pass through, which takes twice the forward's work.
    """
    return (3 if backward else 1) * 4.0 * width * layers * pairs
