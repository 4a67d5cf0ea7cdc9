"""Which regions mattered: how much likelier each box made an answer, measured by leaving its token out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mg_llava.inference.prompts import Prompt
from xtuner.data.text.templates import Piece, PieceKind
from xtuner.data.text.tokenizing import encode_pieces
from xtuner.errors import XTunerError

if TYPE_CHECKING:
    from mg_llava.inference.assistant import Assistant

_ROWS = 8
"""Variants of the prompt that are read together."""


@torch.inference_mode()
def explain_boxes(assistant: Assistant, prompt: Prompt, answer: str) -> list[float]:
    """Returns, for each box of the last picture, by how much it raised the answer's log-probability (natural
    logarithm).

    The pictures are encoded once; for each box the language model then reads prompt and answer without its token.
    Positive: the box spoke for the answer; negative: against it.

    Args:
        assistant: whose model is asked.
        prompt: the question with its pictures and boxes.
        answer: as the model gave it, or any other.

    Raises:
        XTunerError: the model has no object tokens, or the answer is empty.
    """
    model = assistant.model
    if model.object_encoder is None:
        raise XTunerError(
            "this model has no object tokens (it was built without object_encoder): nothing to leave out."
        )
    pieces = [Piece(PieceKind.TEXT, answer, words=("", answer))] if answer else []
    ids = encode_pieces(pieces, assistant.tokenizer, assistant.template, assistant.special_tokens_in_text)
    if not ids:
        raise XTunerError("the answer is empty: there is nothing to explain.")
    count = len(prompt.boxes[-1]) if prompt.boxes else 0
    if not count:
        return []
    data = {
        "input_ids": torch.tensor([[*prompt.input_ids, *ids]]),
        "pixel_values": prompt.pixel_values,
        "boxes": prompt.boxes,
    }
    batch = model.data_preprocessor(data, training=False)
    for unused in ("labels", "position_ids", "target_positions", "targets", "attention_mask"):
        batch.pop(unused)
    embeds = model.embed(**batch)
    targets = torch.tensor(ids, device=embeds.device)
    whole = _log_probability(assistant, embeds, targets)
    left_out = batch["object_positions"][-count:]
    length = embeds.shape[1]
    kept = torch.arange(length - 1, device=embeds.device).repeat(count, 1)
    kept = kept + (kept >= left_out.unsqueeze(1))
    changes = [whole - _log_probability(assistant, embeds[0][rows], targets) for rows in kept.split(_ROWS)]
    return torch.cat(changes).tolist()


def _log_probability(assistant: Assistant, embeds: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """(B, T, D) that end with an answer of A tokens → (B,) its log-probability."""
    count = len(targets)
    logits = assistant.model.llm(inputs_embeds=embeds, use_cache=False, logits_to_keep=count + 1).logits
    logs = logits[:, -count - 1 : -1].float().log_softmax(-1)
    return logs.gather(2, targets.expand(len(logs), -1).unsqueeze(2)).sum((1, 2))
