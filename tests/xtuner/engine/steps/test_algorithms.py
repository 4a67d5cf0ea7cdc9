"""Optimizers by class: how they are built, on which device and under which ZeRO stage they are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.tiny_parts import tiny_llm
from xtuner.engine.steps.algorithms import Algorithm, Muon
from xtuner.engine.steps.optim import build_optimizer
from xtuner.errors import XTunerError

CPU = torch.device("cpu")


def step(model: nn.Module, **settings: Any) -> dict[str, torch.Tensor]:
    """Weights after one update whose gradients are ones."""
    wrapper = build_optimizer(model, CPU, lr=1e-2, max_norm=0.0, **settings)
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    wrapper.update()
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 4)


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        (None, lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.0, fused=True)),
        ({"type": torch.optim.SGD, "momentum": 0.9}, lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9)),
        ({"type": "torch.optim.Adafactor"}, lambda p: torch.optim.Adafactor(p, lr=1e-2, weight_decay=0.0)),
        ({"type": torch.optim.Rprop}, lambda p: torch.optim.Rprop(p, lr=1e-2)),
    ],
)
def test_the_class_is_built_as_by_hand(node: dict[str, Any] | None, expected: Any) -> None:
    ours, model = step(linear(), optimizer_class=node), linear()
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    expected(model.parameters()).step()
    assert all(torch.equal(ours[name], weight) for name, weight in model.named_parameters())


def test_betas_of_the_setting_and_of_the_node() -> None:
    for node, betas in (
        ({"type": torch.optim.Adam}, (0.8, 0.9)),
        ({"type": torch.optim.Adam, "betas": (0.5, 0.6)}, (0.5, 0.6)),
    ):
        wrapper = build_optimizer(linear(), CPU, lr=1.0, betas=(0.8, 0.9), optimizer_class=node)
        assert wrapper.optimizer.param_groups[0]["betas"] == betas


@pytest.mark.parametrize("node", [None, {"type": torch.optim.SGD, "foreach": False}, {"type": torch.optim.Adafactor}])
def test_a_gradient_that_is_not_finite_changes_nothing(node: dict[str, Any] | None) -> None:
    model = linear()
    wrapper = build_optimizer(model, CPU, lr=1.0, optimizer_class=node)
    for weight in model.parameters():
        weight.grad = torch.full_like(weight, float("nan"))
    assert not wrapper.update().isfinite()
    assert all(
        torch.equal(weight, before) for weight, before in zip(model.parameters(), linear().parameters(), strict=True)
    )
    assert all(weight.grad is None for weight in model.parameters())


class TestMuon:
    def test_matrices_by_muon_and_all_else_by_adamw(self) -> None:
        model = tiny_llm()
        before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        wrapper = build_optimizer(model, CPU, lr=1e-2, max_norm=0.0, optimizer_class={"type": Muon})
        generator = torch.Generator().manual_seed(0)
        for weight in model.parameters():
            weight.grad = torch.randn(weight.shape, generator=generator)
        gradients = {name: weight.grad.clone() for name, weight in model.named_parameters()}
        wrapper.update()
        for name, weight in model.named_parameters():
            expected = nn.Parameter(before[name].clone())
            expected.grad = gradients[name]
            is_matrix = weight.ndim == 2 and "embed_tokens" not in name and "lm_head" not in name
            if is_matrix:
                torch.optim.Muon([expected], lr=1e-2, weight_decay=0.0, adjust_lr_fn="match_rms_adamw").step()
            else:
                torch.optim.AdamW([expected], lr=1e-2, weight_decay=0.0).step()
            # fused and plain AdamW round differently: worst seen 2e-9
            torch.testing.assert_close(weight, expected, atol=0 if is_matrix else 1e-7, rtol=0, msg=name)

    def test_rates_reach_both_after_loading(self) -> None:
        model = tiny_llm()
        before = [weight.detach().clone() for weight in model.parameters()]
        wrapper = build_optimizer(model, CPU, lr=1e-2, optimizer_class={"type": Muon})
        wrapper.optimizer.load_state_dict(wrapper.optimizer.state_dict())
        for group in wrapper.optimizer.param_groups:
            group["lr"] = 0.0
        assert wrapper.rates() == {"default": 0.0}
        for weight in model.parameters():
            weight.grad = torch.ones_like(weight)
        wrapper.update()
        assert all(torch.equal(weight, start) for weight, start in zip(model.parameters(), before, strict=True))


class TestSharding:
    @pytest.mark.parametrize("kind", ["AdamW", "Adam", "SGD", "RMSprop", "NAdam", "Adagrad", "Adamax", "Rprop"])
    @pytest.mark.parametrize("stage", [1, 2, 3])
    def test_number_by_number(self, kind: str, stage: int) -> None:
        Algorithm({"type": f"torch.optim.{kind}"}).check_sharding(stage, False, CPU)

    @pytest.mark.parametrize("kind", ["torch.optim.Adafactor", "torch.optim.Muon", "xtuner.engine.steps.Muon"])
    @pytest.mark.parametrize("stage", [1, 2, 3])
    def test_by_whole_matrices(self, kind: str, stage: int) -> None:
        Algorithm({"type": kind}).check_sharding(0, False, CPU)
        name = kind.rpartition(".")[2]
        with pytest.raises(XTunerError, match=f"{name}, which cannot be sharded by ZeRO stage {stage}"):
            build_optimizer(linear(), CPU, lr=1.0, optimizer_class={"type": kind}, zero_stage=stage)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"type": torch.optim.LBFGS}, "LBFGS, which runs the model several times a step"),
        ({"type": torch.optim.SparseAdam}, "SparseAdam, which takes sparse gradients"),
        ({"type": nn.Linear}, "optimizer_class is Linear: expected a class of torch.optim"),
        ({"type": torch.optim.SGD, "momentum": -1}, "SGD refuses its arguments: Invalid momentum"),
    ],
)
def test_refuses(node: dict[str, Any], message: str) -> None:
    with pytest.raises(XTunerError, match=message):
        build_optimizer(linear(), CPU, lr=1.0, optimizer_class=node)


def test_weight_decay_of_an_optimizer_without() -> None:
    with pytest.raises(XTunerError, match="Rprop has no weight decay: set weight_decay=0"):
        build_optimizer(linear(), CPU, lr=1.0, weight_decay=0.1, optimizer_class={"type": torch.optim.Rprop})


@pytest.mark.parametrize("kind", ["PagedAdamW8bit", "AdamW8bit"])
def test_bitsandbytes_without_a_gpu(kind: str) -> None:
    pytest.importorskip("bitsandbytes")
    with pytest.raises(
        XTunerError, match=f"optimizer_class is {kind} of bitsandbytes, which keeps its 8-bit state on a GPU"
    ):
        build_optimizer(linear(), CPU, lr=1.0, optimizer_class={"type": f"bitsandbytes.optim.{kind}"})
