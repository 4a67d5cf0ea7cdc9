"""Rates, patterns and optimizers that cannot be, found before the data is prepared."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.xtuner.engine.toy import ToyModel, toy_config
from xtuner.engine.preflight import preflight
from xtuner.errors import ProblemsError


class Patterned(ToyModel):
    """A toy whose `trainable` is a setting."""

    def __init__(self, trainable: tuple[str, ...], **arguments: Any) -> None:
        super().__init__(**arguments)
        self.set_trainable(trainable)


def problems(deepspeed: str | None = None, trainable: tuple[str, ...] = ("head",), **optimizer: Any) -> list[str]:
    cfg = toy_config(model=Patterned)
    cfg.model.trainable = trainable
    cfg.optimizer.update(optimizer)
    try:
        preflight(cfg, "toy", deepspeed)
    except ProblemsError as error:
        return list(error.problems)
    return []


def test_what_suits_is_not_named() -> None:
    rates = {"default": 1e-3, "head.4": 1e-4}
    assert problems(lr=rates, trainable=("head", "embedding"), weight_decay={"default": 0.1, "embedding": 0.0}) == []
    assert problems("deepspeed_zero3", optimizer_class={"type": torch.optim.SGD, "momentum": 0.9}) == []
    assert problems(trainable=("head.0",), optimizer_class={"type": "xtuner.engine.steps.Muon"}) == []


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lr": {"default": 1e-3, "embedding": 1e-4}}, ["lr names embedding, which is frozen"]),
        (
            {"lr": {"default": 1e-3, "haed": 1e-4}, "weight_decay": {"default": 0, "head.9": 0.1}},
            ["'haed' in lr is not a part", "'head.9' in weight_decay matches no weight"],
        ),
        ({"trainable": ("head.9-",)}, ["'head.9-' in trainable matches no weight"]),
        ({"trainable": (".*",)}, ["'.*' in trainable matches every weight of the model"]),
        (
            {"deepspeed": "deepspeed_zero2", "optimizer_class": {"type": torch.optim.Adafactor}},
            ["Adafactor, which cannot be sharded by ZeRO stage 2"],
        ),
        ({"optimizer_class": {"type": torch.optim.LBFGS}}, ["LBFGS, which runs the model several times a step"]),
    ],
)
def test_one_sentence_each(settings: dict[str, Any], said: list[str]) -> None:
    found = problems(**settings)
    assert len(found) == len(said)
    assert all(part in line for part, line in zip(said, found, strict=True))
