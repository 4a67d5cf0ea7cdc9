"""Rates, patterns and optimizers that cannot be, found before the data is prepared."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import pytest
import torch
from huggingface_hub.errors import GatedRepoError, HFValidationError, LocalEntryNotFoundError

from tests.xtuner.engine.toy import ToyModel, toy_config
from xtuner.engine.preflight import missing_files, preflight
from xtuner.errors import ProblemsError


class Patterned(ToyModel):
    """A toy whose `trainable` is a setting."""

    def __init__(self, trainable: tuple[str, ...] | str, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.set_trainable(trainable)


def problems(deepspeed: str | None = None, trainable: tuple[str, ...] | str = ("head",), **optimizer: Any) -> list[str]:
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
        ({"trainable": "head"}, ["trainable is the text 'head': expected a list, trainable=['head']"]),
        ({"trainable": ("haed",)}, ["'haed' in trainable is not a part"]),
        ({"trainable": ()}, ["No parameter of the model is trainable"]),
        ({"betas": (0.9,)}, ["betas is [0.9]: expected two numbers"]),
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


class TestNamesOnTheHub:
    """A high-resolution encoder may be a name on the Hub, which looks like a folder within a folder."""

    def missing(self, monkeypatch: pytest.MonkeyPatch, error: Exception | None) -> list[str]:
        def download(name: str, file: str) -> str:
            assert (name, file) == ("owner/name", "config.json")
            if error is not None:
                raise error
            return file

        monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
        return missing_files({"visual_encoder_aux_path": "owner/name"})

    def test_a_name(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.missing(monkeypatch, None) == []
        assert self.missing(monkeypatch, GatedRepoError("ask its owner", response=Mock())) == []

    def test_no_name(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for error in (LocalEntryNotFoundError("offline"), HFValidationError("no name")):
            (line,) = self.missing(monkeypatch, error)
            assert line.startswith("visual_encoder_aux_path: 'owner/name' does not exist")

    def test_what_can_be_no_name_is_not_asked_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("huggingface_hub.hf_hub_download", None)
        assert len(missing_files({"visual_encoder_aux_path": "./nowhere/at_all", "data_path": "a/b.json"})) == 2


def test_an_address_of_a_stream_is_no_missing_file() -> None:
    assert missing_files({"data_path": "https://host/train-{0000..0127}.tar"}) == []
    assert len(missing_files({"data_path": "train-{0000..0127}.tar", "box_json_path": "https://host/a.json"})) == 2
