"""Conv-Gate and plain concatenation against what the original implementation recorded."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from mg_llava.model.checkpoint_names import to_our_names, to_published_names
from mg_llava.model.fusion import ConcatFusion, ConvGateFusion
from tests.parity.golden import golden_arrays, golden_weights

GOLDEN = golden_arrays("a_fuse.npz")
# float32 sums in another order; measured worst case 8.1e-7 of an array's largest number (a bias gradient:
# 1152 terms)
TOLERANCE = 5e-6


def loaded_fusion() -> ConvGateFusion:
    prefix = "v0/w/"
    state = {
        f"fuse_module.{key.removeprefix(prefix)}": torch.from_numpy(value)
        for key, value in GOLDEN.items()
        if key.startswith(prefix)
    }
    fusion = ConvGateFusion(32, 48)
    fusion.load_state_dict({key.removeprefix("fusion."): value for key, value in to_our_names(state).items()})
    return fusion


def assert_close(found: torch.Tensor, key: str) -> None:
    expected = GOLDEN[key]
    assert found.shape == expected.shape, key
    error = np.abs(found.detach().numpy() - expected).max() / np.abs(expected).max()
    assert error <= TOLERANCE, f"{key}: {error}"


@pytest.mark.parametrize(("variant", "fusion"), [("v0", loaded_fusion()), ("v3", ConcatFusion(32, 48))])
def test_output_and_gradients(variant: str, fusion: nn.Module) -> None:
    low = torch.from_numpy(GOLDEN["low_res_feat"]).requires_grad_()
    high = torch.from_numpy(GOLDEN["high_res_feat"]).requires_grad_()
    out = fusion(low, high)
    assert_close(out, f"{variant}/out")
    assert fusion.out_channels == out.shape[-1]

    weights = golden_weights().det_uniform(f"a.{variant}.gradout", out.shape)
    (out * torch.from_numpy(weights)).sum().backward()
    assert_close(low.grad[:, ::7], f"{variant}/grad_low")
    assert_close(high.grad[:, :, ::5, ::5], f"{variant}/grad_high")
    gradients = to_published_names({f"fusion.{name}": p.grad for name, p in fusion.named_parameters()})
    for name, gradient in gradients.items():
        assert_close(gradient, f"{variant}/grad/{name.removeprefix('fuse_module.')}")


def test_gate() -> None:
    fusion = loaded_fusion()
    low, high = fusion.branches(torch.from_numpy(GOLDEN["low_res_feat"]), torch.from_numpy(GOLDEN["high_res_feat"]))
    assert_close(torch.atanh(fusion.gate_value(low, high))[:, 0], "v0/gate_pre_tanh")


def test_identity_as_initialised() -> None:
    low = torch.from_numpy(GOLDEN["low_res_feat"])
    out = ConvGateFusion(32, 48)(low, torch.from_numpy(GOLDEN["high_res_feat"]))
    assert (out - low).abs().max().item() == GOLDEN["v0/zero_init_maxdiff"] == 0
