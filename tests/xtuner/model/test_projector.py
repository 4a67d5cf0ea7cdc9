"""The projector's shape by depth."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from xtuner.errors import XTunerError
from xtuner.model.projector import MLPProjector


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_depth_counts_linear_layers(depth: int) -> None:
    projector = MLPProjector(6, 4, depth=depth)
    linear = [layer for layer in projector.layers if isinstance(layer, nn.Linear)]
    assert [layer.in_features for layer in linear] == [6] + [4] * (depth - 1)
    assert projector(torch.zeros(2, 3, 6)).shape == (2, 3, 4)
    assert isinstance(projector.layers[-1], nn.Linear)


def test_two_layers_by_hand() -> None:
    projector = MLPProjector(6, 4)
    tokens = torch.randn(5, 6)
    first, second = projector.layers[0], projector.layers[2]
    torch.testing.assert_close(projector(tokens), second(nn.functional.gelu(first(tokens))))


def test_no_layer() -> None:
    with pytest.raises(XTunerError, match="depth is 0: expected 1 or more"):
        MLPProjector(6, 4, depth=0)
