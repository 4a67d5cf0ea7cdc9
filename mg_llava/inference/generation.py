"""How answers are made: one fully specified setting for evaluation, chat, server and exported folders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import GenerationConfig

_NEUTRAL = {
    "do_sample": False,
    "num_beams": 1,
    "num_return_sequences": 1,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "length_penalty": 1.0,
    "min_length": 0,
    "early_stopping": False,
    "use_cache": True,
}
"""The likeliest token, each time, and nothing else."""


def greedy_config(max_new_tokens: int, stop_ids: Sequence[int], pad_id: int, bos_id: int | None) -> GenerationConfig:
    """Returns the settings of a greedy answer; what they leave open has no effect.

    Args:
        max_new_tokens: answers are cut there.
        stop_ids: ids that end an answer.
        pad_id: fills a batch behind answers that ended.
        bos_id: begins a prompt, for the record.
    """
    ids: dict[str, Any] = {"eos_token_id": list(stop_ids), "pad_token_id": pad_id, "bos_token_id": bos_id}
    return GenerationConfig(**_NEUTRAL, **ids, max_new_tokens=max_new_tokens)
