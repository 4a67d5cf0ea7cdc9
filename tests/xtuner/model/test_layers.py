"""Recomputed and compiled layers: which they are, and that loss and gradients stay."""

from __future__ import annotations

import pytest
import torch

from tests.tiny_parts import tiny_llm
from xtuner.errors import XTunerError
from xtuner.model.layers import checkpoint_activations, checkpointing_layers, compile_modules


def gradients(llm: torch.nn.Module) -> list[torch.Tensor]:
    llm.zero_grad()
    torch.manual_seed(5)
    llm(inputs_embeds=torch.randn(2, 7, 32), use_cache=False).logits.square().sum().backward()
    return [p.grad.clone() for p in llm.parameters() if p.grad is not None]


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0, [False] * 4), (0.25, [False, False, False, True]), (0.5, [False, True] * 2), (1, [True] * 4)],
)
def test_share_of_layers(share: float, expected: list[bool]) -> None:
    llm = tiny_llm(num_hidden_layers=4).train()
    before = gradients(llm)
    checkpoint_activations(llm, share)
    assert [layer.gradient_checkpointing for layer in checkpointing_layers(llm)] == expected
    for ours, theirs in zip(gradients(llm), before, strict=True):
        assert torch.equal(ours, theirs)


def test_refuses_no_share() -> None:
    with pytest.raises(XTunerError, match="activation_checkpointing is 2"):
        checkpoint_activations(tiny_llm(), 2)


def test_compiled_layers_keep_names_and_gradients() -> None:
    llm = tiny_llm().train()
    names, before = list(llm.state_dict()), gradients(llm)
    # without code generation: that is the compiler's own matter, and takes a minute
    compile_modules(checkpointing_layers(llm), backend="aot_eager")
    assert list(llm.state_dict()) == names
    for ours, theirs in zip(gradients(llm), before, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
