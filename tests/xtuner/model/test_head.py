"""The head at supervised positions only: loss and gradients equal the full forward's, for many kinds of head."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from xtuner.errors import XTunerError
from xtuner.model.head import check_fused_loss, supervised_logits, supervised_loss

VOCABULARY, WIDTH = 61, 32
# gemma2 caps its logits by tanh, cohere multiplies and granite divides them
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "phi3": {"pad_token_id": 0},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "mistral": {},
    "olmo2": {},
    "gemma": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "final_logit_softcapping": 3.0},
    "cohere": {"logit_scale": 0.25},
    "granite": {"logits_scaling": 7.0},
    "gpt_neox": {},
    "gpt2": {"n_embd": WIDTH, "n_head": 4, "n_layer": 2},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": WIDTH},
    "stablelm": {},
}


def tiny(kind: str, **changes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    values = {
        "vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **KINDS[kind], **changes,
    }  # fmt: skip
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **values)).eval()


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Embeddings of two rows, and supervised positions that differ between them."""
    torch.manual_seed(1)
    embeds = torch.randn(2, 9, WIDTH)
    positions = torch.tensor([2, 3, 7, 9 + 1, 9 + 3, 9 + 8])
    return embeds.requires_grad_(), positions, torch.randint(VOCABULARY, (len(positions),))


@pytest.mark.parametrize("kind", KINDS)
class TestKinds:
    def test_equals_the_full_forward(self, kind: str) -> None:
        llm = tiny(kind)
        embeds, positions, targets = inputs()
        full = llm(inputs_embeds=embeds, use_cache=False).logits.flatten(0, 1)[positions].float()
        expected = functional.cross_entropy(full, targets, reduction="sum")
        expected.backward()
        expected_gradients = {n: p.grad.clone() for n, p in llm.named_parameters() if p.grad is not None}
        expected_gradients["input"] = embeds.grad.clone()
        llm.zero_grad()
        embeds.grad = None
        loss = supervised_loss(llm, embeds, None, positions, targets)
        loss.backward()
        # worst seen: loss 2e-7 and gradients 1.5e-6 of the largest, from products in another order
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
        for name, gradient in expected_gradients.items():
            ours = embeds.grad if name == "input" else llm.get_parameter(name).grad
            torch.testing.assert_close(ours, gradient, rtol=1e-4, atol=1e-5, msg=name)

    def test_never_makes_logits_of_all_positions(self, kind: str) -> None:
        llm = tiny(kind)
        sizes = []
        llm.get_output_embeddings().register_forward_hook(lambda module, args, out: sizes.append(out.numel()))
        embeds, positions, targets = inputs()
        supervised_loss(llm, embeds, None, positions, targets)
        assert sizes == [len(positions) * VOCABULARY]

    def test_leaves_the_model_as_it_was(self, kind: str) -> None:
        llm = tiny(kind)
        embeds, positions, _ = inputs()
        before = llm(inputs_embeds=embeds, use_cache=False).logits
        supervised_logits(llm, embeds, None, positions)
        assert torch.equal(llm(inputs_embeds=embeds, use_cache=False).logits, before)


def test_models_without_a_decoder_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    llm = tiny("llama")
    embeds, positions, _ = inputs()
    expected = supervised_logits(llm, embeds, None, positions)
    sizes = []
    llm.get_output_embeddings().register_forward_hook(lambda module, args, out: sizes.append(out.shape[1]))
    monkeypatch.setattr(type(llm), "get_decoder", lambda self: self)
    torch.testing.assert_close(supervised_logits(llm, embeds, None, positions), expected)
    assert sizes == [5]  # columns 1, 2, 3, 7, 8 of 9


def test_no_supervised_position() -> None:
    embeds, _, _ = inputs()
    none = torch.zeros(0, dtype=torch.long)
    loss = supervised_loss(tiny("gemma2"), embeds, None, none, none)
    loss.backward()
    assert loss == 0 and not embeds.grad.any()


def test_fused_loss_says_what_it_needs() -> None:
    if not torch.cuda.is_available():
        with pytest.raises(XTunerError, match="fused_loss needs a GPU and the package liger-kernel"):
            check_fused_loss(tiny("llama"))


class StandIn(torch.nn.Module):
    """liger-kernel's fused loss by torch, with the arguments of its versions 0.5 to 0.8."""

    def __init__(self, reduction: str = "mean", softcap: float | None = None) -> None:
        super().__init__()
        self.reduction, self.softcap = reduction, softcap

    def forward(
        self, lin_weight: torch.Tensor, _input: torch.Tensor, target: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        logits = functional.linear(_input, lin_weight, bias)
        logits = logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)
        return functional.cross_entropy(logits, target, reduction=self.reduction)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("cohere", "granite")])
def test_what_the_fused_loss_is_given(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the kernel: that needs a GPU."""
    module = types.SimpleNamespace(LigerFusedLinearCrossEntropyLoss=StandIn)
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", module)
    monkeypatch.setitem(sys.modules, "liger_kernel", types.SimpleNamespace(transformers=module))
    llm = tiny(kind)
    embeds, positions, targets = inputs()
    plain = supervised_loss(llm, embeds, None, positions, targets)
    torch.testing.assert_close(supervised_loss(llm, embeds, None, positions, targets, fused=True), plain)
    assert supervised_loss(llm, embeds, None, positions[:0], targets[:0], fused=True) == 0


@pytest.mark.parametrize("kind", ["cohere", "granite"])
def test_fused_loss_refuses_scaled_logits(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(XTunerError, match="fused_loss does not apply the language model's logit"):
        check_fused_loss(tiny(kind))
    check_fused_loss(tiny("gemma2"))


@pytest.mark.gpu
def test_fused_loss_on_a_gpu() -> None:
    pytest.importorskip("liger_kernel")
    llm = tiny("gemma2").cuda()
    embeds, positions, targets = (tensor.detach().cuda() for tensor in inputs())
    check_fused_loss(llm)
    plain = supervised_loss(llm, embeds, None, positions, targets)
    torch.testing.assert_close(
        supervised_loss(llm, embeds, None, positions, targets, fused=True), plain, rtol=1e-4, atol=0
    )
