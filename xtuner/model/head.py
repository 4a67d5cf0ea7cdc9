"""The language model's loss at supervised positions only: all other logits would cost most of the step.

A decoder's states are cut to the supervised positions between the decoder and the head, so that the model's own forward
does the rest: soft-capping, scaling and whatever else a model does with its logits. Never is there a tensor of all
positions times the vocabulary.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from xtuner.errors import XTunerError

_LOGIT_CHANGES = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")


def supervised_logits(
    llm: PreTrainedModel, embeds: torch.Tensor, position_ids: torch.Tensor | None, positions: torch.Tensor
) -> torch.Tensor:
    """Returns the logits (S, vocabulary) at S of the B·T positions.

    Args:
        llm: any causal language model of transformers.
        embeds: (B, T, D), its input.
        position_ids: (B, T), or None to count.
        positions: (S,) places in the flattened (B·T).
    """

    def keep_supervised(module: torch.nn.Module, arguments: Any, output: Any) -> Any:
        states = output.last_hidden_state.flatten(0, 1).index_select(0, positions)
        output.last_hidden_state = states.unsqueeze(0)
        return output

    decoder = llm.get_decoder()
    if decoder is None or decoder is llm:
        return _logits_of_columns(llm, embeds, position_ids, positions)
    handle = decoder.register_forward_hook(keep_supervised)
    try:
        logits = llm(inputs_embeds=embeds, position_ids=position_ids, use_cache=False).logits
    finally:
        handle.remove()
    return logits.squeeze(0)


def _logits_of_columns(
    llm: PreTrainedModel, embeds: torch.Tensor, position_ids: torch.Tensor | None, positions: torch.Tensor
) -> torch.Tensor:
    """The same for a model without a decoder of its own: the head on every column in which any row is supervised."""
    length = embeds.shape[1]
    columns, where = torch.unique(positions % length, return_inverse=True)
    logits = llm(inputs_embeds=embeds, position_ids=position_ids, use_cache=False, logits_to_keep=columns).logits
    return logits[positions // length, where]


def supervised_loss(
    llm: PreTrainedModel,
    embeds: torch.Tensor,
    position_ids: torch.Tensor | None,
    positions: torch.Tensor,
    targets: torch.Tensor,
    fused: bool = False,
) -> torch.Tensor:
    """Returns the summed cross entropy of the supervised tokens, a scalar in float32.

    Args:
        llm, embeds, position_ids, positions: see `supervised_logits`.
        targets: (S,) the ids to be predicted there.
        fused: by liger-kernel's fused head and loss, which never holds all S logits either; see `check_fused_loss`.
    """
    if not fused or not len(targets):  # the kernel divides by their number
        logits = supervised_logits(llm, embeds, position_ids, positions).float()
        return functional.cross_entropy(logits, targets, reduction="sum")
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    output = llm.get_decoder()(inputs_embeds=embeds, position_ids=position_ids, use_cache=False)
    states = output.last_hidden_state.flatten(0, 1).index_select(0, positions)
    head = llm.get_output_embeddings()
    softcap = getattr(llm.config, "final_logit_softcapping", None)
    loss = LigerFusedLinearCrossEntropyLoss(reduction="sum", softcap=softcap)
    return loss(head.weight, states, targets, getattr(head, "bias", None)).float()


def check_fused_loss(llm: PreTrainedModel) -> None:
    """Checks that the fused loss can stand for a model's own head.

    Raises:
        XTunerError: liger-kernel or a GPU is missing, or the model scales its logits.
    """
    if importlib.util.find_spec("liger_kernel") is None or not torch.cuda.is_available():
        raise XTunerError(
            "fused_loss needs a GPU and the package liger-kernel: run 'pip install liger-kernel', or set "
            "fused_loss=False."
        )
    changes = [name for name in _LOGIT_CHANGES[1:] if getattr(llm.config, name, None) is not None]
    if changes:
        raise XTunerError(f"fused_loss does not apply the language model's {changes[0]}: set fused_loss=False.")
