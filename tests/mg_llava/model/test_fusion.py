"""The fusions' formulas, widths and initial values."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mg_llava.model.fusion import ConcatFusion, ConvConcatFusion, ConvGateFusion, GatedConcatFusion

LOW, HIGH, SIDE = 8, 6, 3


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, SIDE * SIDE, LOW, generator=generator), torch.randn(2, HIGH, SIDE, SIDE, generator=generator)


def randomized(fusion: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    for parameter in fusion.parameters():
        nn.init.normal_(parameter, std=0.3)
    return fusion


@pytest.mark.parametrize(
    ("kind", "width"),
    [(ConvGateFusion, LOW), (GatedConcatFusion, 2 * LOW), (ConvConcatFusion, 2 * LOW), (ConcatFusion, LOW + HIGH)],
)
class TestEveryFusion:
    def test_width(self, kind: type[nn.Module], width: int) -> None:
        fusion = kind(LOW, HIGH)
        assert fusion.out_channels == width
        assert fusion(*inputs()).shape == (2, SIDE * SIDE, width)

    def test_no_pictures(self, kind: type[nn.Module], width: int) -> None:
        low, high = inputs()
        assert kind(LOW, HIGH)(low[:0], high[:0]).shape == (0, SIDE * SIDE, width)


class TestInitialValues:
    def test_both_branches_add_nothing(self) -> None:
        low, high = inputs()
        assert torch.equal(ConvGateFusion(LOW, HIGH)(low, high), low)

    def test_yet_every_projection_gets_a_gradient(self) -> None:
        fusion = ConvGateFusion(LOW, HIGH)
        (fusion(*inputs()) * torch.randn(2, SIDE * SIDE, LOW)).sum().backward()
        assert fusion.high_proj.weight.grad.abs().max() > 0
        assert fusion.low_proj.weight.grad.abs().max() > 0

    def test_which_are_zero(self) -> None:
        zero = {name for name, p in ConvGateFusion(LOW, HIGH).named_parameters() if not p.any()}
        projections = {"low_proj.weight", "high_proj.weight"}
        assert zero == projections | {f"{conv}.bias" for conv in ("low_conv", "low_proj", "high_conv", "high_proj")}


class TestFormulas:
    """The ablations against the branches and gate of Conv-Gate with the same weights."""

    def test_gated_concat(self) -> None:
        fusion = randomized(GatedConcatFusion(LOW, HIGH))
        low, high = fusion.branches(*inputs())
        gate = fusion.gate_value(low, high)
        assert gate.shape == (2, 1, 1)
        assert torch.equal(fusion(*inputs()), torch.cat([low, gate * high], dim=-1))

    def test_conv_gate_is_the_sum_of_its_halves(self) -> None:
        gated = randomized(GatedConcatFusion(LOW, HIGH))
        fusion = ConvGateFusion(LOW, HIGH)
        fusion.load_state_dict(gated.state_dict())
        low, high = gated(*inputs()).chunk(2, dim=-1)
        torch.testing.assert_close(fusion(*inputs()), low + high)

    def test_conv_concat(self) -> None:
        fusion = randomized(ConvConcatFusion(LOW, HIGH))
        assert torch.equal(fusion(*inputs()), torch.cat(fusion.branches(*inputs()), dim=-1))

    def test_concat_keeps_places(self) -> None:
        low, high = inputs()
        fused = ConcatFusion(LOW, HIGH)(low, high)
        # token 5 stands in row 1, column 2
        assert torch.equal(fused[0, 5], torch.cat([low[0, 5], high[0, :, 1, 2]]))

    def test_gate_is_one_number_per_picture(self) -> None:
        fusion = randomized(ConvGateFusion(LOW, HIGH))
        low, high = fusion.branches(*inputs())
        other = torch.cat([high[:1], 3 * high[1:]])
        gate, changed = fusion.gate_value(low, high), fusion.gate_value(low, other)
        torch.testing.assert_close(gate[0], changed[0])
        assert (gate[1] - changed[1]).abs() > 1e-3
