"""Counted operations against torch's own counter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mg_llava.model.flops import high_res_flops, low_res_flops
from tests.tiny_parts import HIGH_SIZE, LOW_SIZE, tiny_batch, tiny_model
from xtuner.constants import IGNORE_INDEX

CONNECTORS = ("fusion", "projector", "object_encoder")


def counted(run: object) -> float:
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        run()  # type: ignore[operator]
    return counter.get_total_flops()


def test_encoders(tmp_path: Path) -> None:
    model = tiny_model(tmp_path)
    low, high = torch.zeros(1, 3, LOW_SIZE, LOW_SIZE), torch.zeros(1, 3, HIGH_SIZE, HIGH_SIZE)
    with torch.no_grad():
        assert low_res_flops(model.low_res_encoder, trained=False) == counted(lambda: model.low_res_encoder(low))
        assert high_res_flops(model.high_res_encoder) == counted(lambda: model.high_res_encoder(high))


@pytest.mark.parametrize("trainable", [CONNECTORS, (*CONNECTORS, "llm")])
def test_whole_step(tmp_path: Path, trainable: tuple[str, ...]) -> None:
    model = tiny_model(tmp_path, trainable=trainable)
    batch = tiny_batch((40,), (1,), boxes=5)
    ready = model.data_preprocessor(batch, True)
    expected = counted(lambda: model(**ready)["loss_sum"].backward())
    # not counted there or here: box pooling, the gate, gradients of what gets none, attention beyond the diagonal
    assert model.step_flops(batch) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("trainable", [CONNECTORS, (*CONNECTORS, "llm")])
def test_cost_of_samples(tmp_path: Path, trainable: tuple[str, ...]) -> None:
    """Samplers balance by the step's count without what they do not know: boxes, and which tokens are learned."""
    model = tiny_model(tmp_path, trainable=trainable)
    batch = tiny_batch((40,), (1,), boxes=0)
    batch["labels"].fill_(IGNORE_INDEX)
    tokens = 40 - 1 + model.low_res_encoder.num_tokens
    (cost,) = model.cost_weights().of(np.array([tokens]), np.array([1]))
    assert cost == pytest.approx(model.step_flops(batch))
