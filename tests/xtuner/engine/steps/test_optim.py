from __future__ import annotations

import pytest
import torch
from torch import nn

from xtuner.engine.steps.optim import build_optimizer, set_learning_rate
from xtuner.engine.steps.precision import cast_parameters, resolve_precision
from xtuner.errors import XTunerError

CPU = torch.device("cpu")


def tiny_model() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    model[2].requires_grad_(False)
    return model


class TestStepOptimizer:
    def test_clips_and_reports_the_norm_before(self) -> None:
        model = tiny_model()
        wrapper = build_optimizer(model, CPU, lr=0.0, max_norm=1.0)
        model[0].weight.grad = torch.full_like(model[0].weight, 2.0)
        seen = []
        wrapper.optimizer.register_step_pre_hook(lambda *_: seen.append(model[0].weight.grad.norm()))
        assert wrapper.update().item() == pytest.approx(2 * 12**0.5)
        assert seen[0].item() == pytest.approx(1.0)
        assert model[0].weight.grad is None

    def test_zero_leaves_gradients_alone(self) -> None:
        model = tiny_model()
        wrapper = build_optimizer(model, CPU, lr=0.0, max_norm=0)
        model[0].weight.grad = torch.full_like(model[0].weight, 2.0)
        seen = []
        wrapper.optimizer.register_step_pre_hook(lambda *_: seen.append(model[0].weight.grad.norm()))
        wrapper.update()
        assert seen[0].item() == pytest.approx(2 * 12**0.5)

    def test_learning_rate_is_a_share_of_the_peak(self) -> None:
        wrapper = build_optimizer(tiny_model(), CPU, lr=0.2, weight_decay=0.1)
        set_learning_rate(wrapper.optimizer, 0.5)
        set_learning_rate(wrapper.optimizer, 0.25)
        assert [group["lr"] for group in wrapper.optimizer.param_groups] == [0.05, 0.05]

    def test_refuses_no_micro_batch(self) -> None:
        with pytest.raises(XTunerError, match="accumulative_counts is 0"):
            build_optimizer(tiny_model(), CPU, lr=1.0, accumulative_counts=0)


class TestPrecision:
    def test_auto_on_the_cpu_is_fp32(self) -> None:
        assert resolve_precision("auto", CPU).name == "fp32"

    @pytest.mark.parametrize(("name", "message"), [("fp16", "cannot train"), ("bf_16", "Did you mean 'bf16'")])
    def test_refuses(self, name: str, message: str) -> None:
        with pytest.raises(XTunerError, match=message):
            resolve_precision(name, CPU)

    def test_trained_weights_stay_float32(self) -> None:
        model = tiny_model().bfloat16()
        model.register_buffer("angles", torch.ones(1))
        cast_parameters(model, resolve_precision("bf16", CPU))
        assert model[0].weight.dtype == torch.float32
        assert model[2].weight.dtype == torch.bfloat16
        assert model.angles.dtype == torch.float32
