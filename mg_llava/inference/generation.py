"""How answers are made: one fully specified setting for evaluation, chat, server and exported folders."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import GenerationConfig, TextStreamer

from xtuner.errors import XTunerError

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


@dataclass(frozen=True)
class Draws:
    """How tokens are drawn where the likeliest is not taken each time.

    Attributes:
        seed: of the random numbers.
        temperature: above 0; higher is more random.
        top_p: tokens come from the smallest set with this share of the probability, above 0 and at most 1.

    Raises:
        XTunerError: a value out of its range.
    """

    seed: int
    temperature: float = 0.7
    top_p: float = 0.9

    def __post_init__(self) -> None:
        if not (0 < self.temperature < float("inf") and 0 < self.top_p <= 1 and 0 <= self.seed < 2**63):
            raise XTunerError(
                f"seed {self.seed}, temperature {self.temperature}, top_p {self.top_p}: expected a seed of 0 or more, "
                "a temperature above 0 and a top_p above 0 and at most 1."
            )

    def config(self, greedy: GenerationConfig) -> GenerationConfig:
        """Returns the greedy settings with drawn tokens instead."""
        drawn = {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": 0}
        return GenerationConfig(**{**greedy.to_dict(), **drawn})

    def seed_of(self, names: Sequence[str]) -> int:
        """Returns the seed of one batch: the same for the same names, whichever process answers them."""
        return zlib.crc32("\0".join([str(self.seed), *names]).encode("utf-8", "replace"))


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


class CallbackStreamer(TextStreamer):
    """Hands finished words to a function instead of printing them."""

    def __init__(self, tokenizer: Any, on_text: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_special_tokens=True)
        self.on_text = on_text

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Called by transformers with each piece of text."""
        if text:
            self.on_text(text)
