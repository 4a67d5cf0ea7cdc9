"""Rates and weight decay by part, pattern and layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from xtuner.engine.steps.groups import Group, layer_numbers, parameter_groups
from xtuner.errors import ProblemsError, XTunerError
from xtuner.model.base import TrainableParts


class Model(TrainableParts):
    """A tower of three blocks, a head, and a frozen embedding."""

    part_names = ("tower", "head", "embedding", "absent")

    def __init__(self, trainable: tuple[str, ...] = ("tower", "head")) -> None:
        super().__init__()
        self.tower = nn.Module()
        self.tower.stem = nn.Linear(2, 2)
        self.tower.blocks = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
        self.tower.norm = nn.LayerNorm(2)
        self.head = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
        self.embedding = nn.Embedding(3, 2)
        self.absent = None
        self.set_trainable(trainable)

    def forward(self) -> None:
        """Is not asked for."""


def seen(groups: list[Group]) -> list[tuple[str, float, float, int]]:
    return [(group.label, group.lr, group.weight_decay, len(group.names)) for group in groups]


def test_one_number_for_all() -> None:
    model = Model()
    assert seen(parameter_groups(model, 1e-3)) == [("default", 1e-3, 0.0, 14)]
    assert seen(parameter_groups(model, 1e-3, 0.1)) == [("default", 1e-3, 0.1, 5), ("default", 1e-3, 0.0, 9)]
    assert seen(parameter_groups(model, 1e-3, 0.1, decay_norms_and_biases=True)) == [("default", 1e-3, 0.1, 14)]
    assert seen(parameter_groups(nn.Linear(2, 2), 1e-3)) == [("default", 1e-3, 0.0, 2)]


def test_every_trained_weight_once_in_the_models_order() -> None:
    model = Model()
    groups = parameter_groups(
        model, {"default": 1.0, "head": 2.0, "tower.blocks.1-": 3.0}, {"default": 0.1, "head": 0.0}
    )
    names = [name for group in groups for name in group.names]
    assert sorted(names) == sorted(name for name, weight in model.named_parameters() if weight.requires_grad)
    assert all(dict(model.named_parameters())[n] is w for g in groups for n, w in zip(g.names, g.weights, strict=True))
    assert seen(groups) == [
        ("default", 1.0, 0.1, 2),
        ("default", 1.0, 0.0, 4),
        ("head", 2.0, 0.0, 4),
        ("tower.blocks.1-", 3.0, 0.1, 2),
        ("tower.blocks.1-", 3.0, 0.0, 2),
    ]


def test_the_order_of_entries_has_no_meaning() -> None:
    entries = {"default": 1.0, "tower.blocks.1-": 3.0, "tower": 4.0, "head": 2.0, r"^tower\.norm": 5.0}
    model = Model()
    ours, reversed_ = (parameter_groups(model, dict(pairs)) for pairs in (entries.items(), reversed(entries.items())))
    assert [(g.label, g.names) for g in ours] == [(g.label, g.names) for g in reversed_]


def test_layers() -> None:
    groups = parameter_groups(Model(), {"default": 1.0, "tower": 0.8}, layer_decay={"tower": 0.5})
    assert [(group.label, group.layer, group.lr) for group in groups] == [
        ("default", None, 1.0),
        ("tower", 0, 0.1),
        ("tower", 1, 0.2),
        ("tower", 2, 0.4),
        ("tower", 3, 0.8),
    ]
    assert {name.partition(".")[2] for name in groups[-1].names} == {
        "blocks.2.weight", "blocks.2.bias", "norm.weight", "norm.bias"
    }  # fmt: skip


@pytest.mark.parametrize("family", ["clip", "convnext", "vit"])
def test_layers_of_real_towers(family: str) -> None:
    import timm
    from transformers import CLIPVisionConfig, CLIPVisionModel

    from xtuner.model.meta import meta_init

    with meta_init():
        if family == "clip":
            module = CLIPVisionModel(CLIPVisionConfig(num_hidden_layers=5))
        else:
            module = timm.create_model({"convnext": "convnext_tiny", "vit": "vit_tiny_patch16_224"}[family])
    layers = layer_numbers([f"tower.{name}" for name, _ in module.named_parameters()])
    assert max(layers.values()) == {"clip": 5, "convnext": 18, "vit": 12}[family]
    assert list(layers.values()) == sorted(layers.values())
    assert layers[next(iter(layers))] == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": {"default": 1.0, "embedding": 2.0}}, "lr names embedding, which is frozen: add it to trainable"),
        ({"lr": {"default": 1.0, "embedding.weight": 2.0}}, "lr names embedding.weight, which is frozen"),
        ({"lr": {"default": 1.0, "absent": 2.0}}, "lr names absent, which this model does not have"),
        ({"lr": {"default": 1.0, "haed": 2.0}}, "'haed' in lr is not a part of Model.* Did you mean 'head'"),
        ({"lr": {"default": 1.0, "tower.blocks.7-": 2.0}}, "'tower.blocks.7-' in lr matches no weight: names run from"),
        ({"lr": {"default": 1.0, ".*": 2.0}}, "'.*' in lr matches every trained weight: set default instead"),
        ({"lr": {"default": 1.0, "(": 2.0}}, "the regular expression '\\(' cannot be read"),
        ({"lr": {"head": 1.0}}, "lr says nothing of tower.stem.weight: add default"),
        ({"lr": {"default": "1e-3"}}, "lr of default is '1e-3': expected a number"),
        ({"lr": -1.0}, "lr of default is -1.0: expected a number, 0 or more"),
        ({"lr": {"default": 1.0, "head.0": 2.0, "head.1": 3.0, "head": 1.0}}, "lr of head has no effect"),
        ({"lr": {"default": 1.0, "head.0": 2.0, "weight$": 3.0}}, "both 'head.0' and 'weight\\$' match head.0.weight"),
        (
            {"lr": 1.0, "weight_decay": {"default": 0.1, "embedding": 0}},
            "weight_decay names embedding, which is frozen",
        ),
        ({"lr": 1.0, "layer_decay": {"embedding": 0.9}}, "layer_decay names embedding, which is frozen"),
        ({"lr": 1.0, "layer_decay": {"head.0": 0.9}}, "layer_decay names head.0: expected a part, of tower"),
        ({"lr": 1.0, "layer_decay": {"tower": 1.5}}, "layer_decay of tower is 1.5: expected a number above 0"),
    ],
)
def test_refuses(settings: dict, message: str) -> None:
    with pytest.raises(ProblemsError, match=message):
        parameter_groups(Model(), **settings)


def test_says_all_at_once() -> None:
    with pytest.raises(ProblemsError) as raised:
        parameter_groups(Model(), {"default": 1.0, "absent": 2.0, "embedding": 1.0}, {"default": 0.1, "haed": 0.0})
    assert str(raised.value).count("\n  - ") == 3


def test_nothing_to_train() -> None:
    with pytest.raises(XTunerError, match="No parameter"):
        parameter_groups(nn.Linear(2, 2).requires_grad_(False), 1.0)


def test_a_partitioned_weight_counts_by_its_true_shape() -> None:
    model = nn.Linear(2, 2, bias=False)
    model.weight.ds_shape = torch.Size([2, 2])
    model.weight.data = torch.empty(0)
    (group,) = parameter_groups(model, 1.0, 0.1)
    assert group.weight_decay == 0.1
