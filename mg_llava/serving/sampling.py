"""How the tokens of one answer are chosen."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sampling:
    """How an answer is made.

    Attributes:
        max_new_tokens: it is cut there.
        temperature: 0 = the likeliest token each time.
        top_p: tokens are drawn from the smallest set that has this share of the probability.
        stop: texts at which the answer ends; they are not part of it.
        seed: of this request's own draws; None = different each time.
    """

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
