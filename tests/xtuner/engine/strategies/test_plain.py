"""Plain torch: gradients lie in memory as DDP's buckets want them."""

from __future__ import annotations

import torch
from torch import nn

from xtuner.engine.strategies.plain import keep_gradient_layout


class TestKeepGradientLayout:
    def test_convolutions_in_channels_last(self) -> None:
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 4, 1), nn.Conv2d(4, 1, 1))
        pixels = torch.rand(2, 6, 8, 8).to(memory_format=torch.channels_last)
        layers(pixels).sum().backward()
        expected = [parameter.grad.clone() for parameter in layers.parameters()]
        layers.zero_grad(set_to_none=True)
        keep_gradient_layout(layers)
        layers(pixels).sum().backward()
        for parameter, gradient in zip(layers.parameters(), expected, strict=True):
            assert parameter.grad.stride() == parameter.stride()
            assert torch.equal(parameter.grad, gradient)

    def test_strides_that_mean_something_stay(self) -> None:
        weight = nn.Parameter(torch.zeros(3, 1, 4))
        keep_gradient_layout(nn.ParameterList([weight]))
        gradient = torch.arange(12.0).reshape(4, 1, 3).transpose(0, 2)
        (weight * gradient).sum().backward()
        assert torch.equal(weight.grad, gradient)
