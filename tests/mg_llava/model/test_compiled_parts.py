"""What ``compile_model`` compiles: each part is one graph, and the model's loss and gradients stay."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mg_llava.model import MGLLaVA
from tests.tiny_parts import tiny_batch, tiny_model


@pytest.fixture(autouse=True)
def graphs() -> Iterator[Any]:
    """The compiler's counts of this test."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield torch._dynamo.utils.counters
    torch._dynamo.reset()


def loss_and_gradients(model: MGLLaVA) -> tuple[float, list[torch.Tensor]]:
    model.zero_grad()
    batch = tiny_batch(lengths=(12, 9), pictures=(1, 1))
    loss = model(**model.data_preprocessor(batch, True), mode="loss")["loss_sum"]
    loss.backward()
    return float(loss.detach()), [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager"])
def test_no_graph_break_and_the_same_numbers(tmp_path: Path, graphs: Any, backend: str) -> None:
    """All parts trained, layers recomputed; inductor's code generation is the compiler's matter."""
    model = tiny_model(tmp_path, trainable=MGLLaVA.part_names, activation_checkpointing=True).train()
    for module in model.high_res_encoder.modules():
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0
    expected, theirs = loss_and_gradients(model)
    model.compile_parts(backend)
    found, ours = loss_and_gradients(model)
    assert not graphs["graph_break"], dict(graphs["graph_break"])
    assert graphs["stats"]["unique_graphs"] >= 3
    assert found == pytest.approx(expected, rel=1e-5)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-5)
