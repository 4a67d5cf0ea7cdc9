"""Marks of weights: the same for the same weights in any number format, others for others."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from xtuner.model.files.frozen import base_weights, mark_weights, remember_values, same_weights


def layer(change: float = 0.0, dtype: torch.dtype = torch.float32, width: int = 70) -> nn.Module:
    torch.manual_seed(0)
    part = nn.Sequential(nn.Linear(width, 30), nn.LayerNorm(30))
    with torch.no_grad():
        part[0].weight += change
    return part.to(dtype)


def marks(part: nn.Module, **arguments: object) -> dict[str, object]:
    found = mark_weights(base_weights(part), **arguments)  # type: ignore[arg-type]
    assert found is not None
    return found


class TestSameWeights:
    @pytest.mark.parametrize("first", [torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("second", [torch.float32, torch.bfloat16, torch.float16])
    def test_number_formats(self, first: torch.dtype, second: torch.dtype) -> None:
        """What was trained in bfloat16 is found again in float32; bfloat16 and float16 both lost something."""
        apart = first != second and torch.float32 not in (first, second)
        assert same_weights(marks(layer(dtype=first)), marks(layer(dtype=second))) is (None if apart else True)
        assert same_weights(marks(layer(dtype=first)), marks(layer(0.1, second))) is (None if apart else False)

    def test_sizes(self) -> None:
        assert same_weights(marks(layer()), marks(layer(width=71))) is False

    def test_small_changes_count_in_full_precision_only(self) -> None:
        small = marks(layer(1e-6))
        assert same_weights(marks(layer()), small) is False


def test_without_adapters() -> None:
    part = layer()
    part.lora = nn.Linear(3, 3)
    assert mark_weights(base_weights(part, {"lora.weight", "lora.bias"})) == marks(layer()) != marks(part)


def test_tied_weights_count_once() -> None:
    part = layer()
    part.again = part[0]
    assert marks(part) == marks(layer())


def test_a_quantised_layer_is_marked_by_what_it_was_made_from() -> None:
    part = layer()
    remember_values(part[0], part[0].weight)
    part[0].weight = nn.Parameter(torch.zeros(1050, dtype=torch.uint8), requires_grad=False)
    assert marks(part) == marks(layer())


def test_nothing_to_mark() -> None:
    assert mark_weights([]) is None
    assert mark_weights([torch.empty(0)]) is None


@settings(max_examples=50, deadline=None)
@given(numbers=st.integers(1, 300), ranks=st.integers(1, 5))
def test_pieces_of_a_split_weight(numbers: int, ranks: int) -> None:
    """As ZeRO-3 leaves it: each rank has a piece in ``ds_tensor``; the last one is filled up with anything."""
    weight = torch.randn(numbers)
    size = -(-numbers // ranks)
    pieces = torch.cat([weight, torch.full((size * ranks - numbers,), 9.0)]).split(size)
    collected: list[object] = []

    def split(rank: int) -> nn.Parameter:
        parameter = nn.Parameter(torch.empty(0), requires_grad=False)
        parameter.ds_tensor, parameter.ds_numel = pieces[rank], numbers  # type: ignore[attr-defined]
        return parameter

    with pytest.MonkeyPatch.context() as patch:
        for rank in range(ranks):
            patch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
            mark_weights([split(rank)], lambda own: collected.append(own) or [own])  # type: ignore[func-returns-value]
        together = mark_weights([split(ranks - 1)], lambda _: collected)
    assert together == mark_weights([weight])
