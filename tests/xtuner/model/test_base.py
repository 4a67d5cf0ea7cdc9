"""Parts that are trained or frozen, and what is saved of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from xtuner.errors import XTunerError
from xtuner.model.base import TrainableParts


class TwoParts(TrainableParts):
    """An encoder with dropout, a head, and a part that is not there."""

    part_names = ("encoder", "head", "extra")

    def __init__(self, trainable: tuple[str, ...]) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5))
        self.head = nn.Linear(3, 1)
        self.extra = None
        self.set_trainable(trainable)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(inputs))


def test_frozen_parts_stay_in_eval_mode() -> None:
    model = TwoParts(("head",)).train()
    assert not any(module.training for module in model.encoder.modules())
    assert model.head.training
    assert not any(parameter.requires_grad for parameter in model.encoder.parameters())


def test_trainable_can_change() -> None:
    model = TwoParts(("head",))
    model.set_trainable(("encoder",))
    assert model.trainable == ("encoder",)
    assert model.encoder[1].training
    assert not model.head.weight.requires_grad


def test_state_dict_of_trained_parts() -> None:
    model = TwoParts(("head",))
    assert list(model.state_dict()) == ["head.weight", "head.bias"]
    assert set(model.full_state_dict()) == {"encoder.0.weight", "encoder.0.bias", "head.weight", "head.bias"}


def test_state_dict_inside_a_wrapper() -> None:
    assert set(nn.ModuleDict({"module": TwoParts(("head",))}).state_dict()) == {
        "module.head.weight",
        "module.head.bias",
    }


def test_load_state_dict_needs_only_trained_parts() -> None:
    source, target = TwoParts(("head",)), TwoParts(("head",))
    target.load_state_dict(source.state_dict())
    assert torch.equal(target.head.weight, source.head.weight)
    with pytest.raises(RuntimeError, match=r"missing weights: \['head.bias'\]"):
        target.load_state_dict({"head.weight": source.head.weight})
    with pytest.raises(RuntimeError, match=r"unexpected weights: \['tail.weight'\]"):
        target.load_state_dict({**source.state_dict(), "tail.weight": torch.zeros(1)})


def test_a_weight_of_another_shape() -> None:
    with pytest.raises(XTunerError, match=r"does not fit this model:\n  - size mismatch for head.weight"):
        TwoParts(("head",)).load_state_dict({"head.weight": torch.zeros(2, 2), "head.bias": torch.zeros(1)})


def test_a_part_that_the_model_goes_without_is_skipped() -> None:
    assert TwoParts(("head", "extra")).trainable == ("head",)


def test_unknown_part() -> None:
    with pytest.raises(XTunerError, match="'heads' in trainable .* Did you mean 'head'"):
        TwoParts(("heads",))


def test_init_weights_changes_nothing() -> None:
    """mmengine's runner calls it on whatever it trains."""
    model = TwoParts(("head",))
    before = model.head.weight.clone()
    model.init_weights()
    assert torch.equal(model.head.weight, before)


def test_integer_parameters_are_left_alone() -> None:
    model = TwoParts(("head",))
    model.encoder.register_parameter("codes", nn.Parameter(torch.zeros(2, dtype=torch.int8), requires_grad=False))
    model.set_trainable(("encoder",))
    assert not model.encoder.codes.requires_grad
