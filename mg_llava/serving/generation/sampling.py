"""How the tokens of one answer are chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from xtuner.errors import XTunerError

_COLDEST = 1e-3
"""Below this temperature the likeliest token has all the probability, within float32 and a margin of 0.02 logits."""
LEAST_SEED, LARGEST_SEED = -(2**63), 2**63 - 1
"""OpenAI's range (a signed 64-bit number), all of which PyTorch's generators take."""


@dataclass(frozen=True)
class Sampling:
    """How an answer is made.

    Attributes:
        max_new_tokens: it is cut there.
        temperature: 0 = the likeliest token each time.
        top_p: tokens are drawn from the smallest set that has this share of the probability; at least one is in it.
        stop: texts at which the answer ends; they are not part of it.
        seed: of this request's own draws; None = different each time.
        presence_penalty: subtracted from the logit of each token that the answer holds already.
        frequency_penalty: subtracted once for each time that the answer holds a token.
    """

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0

    def generator(self, device: torch.device | str) -> torch.Generator | None:
        """Returns the generator of the answer's own draws; None without a seed.

        Raises:
            XTunerError: a seed that is no signed 64-bit number.
        """
        if self.seed is None:
            return None
        if not LEAST_SEED <= self.seed <= LARGEST_SEED:
            raise XTunerError(f"the seed has {self.seed.bit_length()} bits: expected a signed 64-bit number.")
        return torch.Generator(device=device).manual_seed(self.seed)


@dataclass(frozen=True)
class Draw:
    """What the next token of one row depends on besides its logits.

    Attributes:
        sampling: how the answer is made.
        generator: of the answer's own draws; None = the common one.
        ids: the answer so far.
    """

    sampling: Sampling
    generator: torch.Generator | None = None
    ids: Sequence[int] = ()


def choose(logits: torch.Tensor, draws: Sequence[Draw]) -> list[int | None]:
    """Returns the next token of each row, as its request wants it chosen; None where a row's logits are no numbers.

    Args:
        logits: (B, vocabulary) float32.
        draws: B of them.
    """
    logits = _penalise(logits, draws)
    best = logits.max(-1)
    # NaN anywhere in a row makes its maximum NaN; such a row must not come to a draw, which would end the whole batch
    sound = torch.isfinite(best.values).tolist()
    tokens = best.indices
    rows = [row for row, draw in enumerate(draws) if sound[row] and draw.sampling.temperature >= _COLDEST]
    if rows:
        index = torch.tensor(rows, device=tokens.device)
        heat = _column([draws[row].sampling.temperature for row in rows], logits)
        share = _column([draws[row].sampling.top_p for row in rows], logits)
        probabilities = nucleus((logits[index] / heat).softmax(-1), share)
        drawn = [
            torch.multinomial(row, 1, generator=draws[number].generator)
            for row, number in zip(probabilities, rows, strict=True)
        ]
        tokens = tokens.index_copy(0, index, torch.cat(drawn))
    return [token if good else None for token, good in zip(tokens.tolist(), sound, strict=True)]


def nucleus(probabilities: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Zero outside of the smallest set of tokens that together have at least `share`; (B, vocabulary)."""
    ordered, order = probabilities.sort(-1, descending=True)
    outside = ordered.cumsum(-1) - ordered >= share
    # the likeliest stays, also for a share that is 0 or becomes 0 in float32
    outside[:, 0] = False
    ordered = ordered.masked_fill(outside, 0.0)
    return torch.zeros_like(probabilities).scatter(-1, order, ordered)


def _penalise(logits: torch.Tensor, draws: Sequence[Draw]) -> torch.Tensor:
    """Subtracts the penalties of rows that have them from a copy of the logits."""
    rows = [
        row
        for row, draw in enumerate(draws)
        if draw.ids and (draw.sampling.presence_penalty or draw.sampling.frequency_penalty)
    ]
    if not rows:
        return logits
    logits = logits.clone()
    for row in rows:
        sampling = draws[row].sampling
        counts = torch.bincount(torch.tensor(draws[row].ids, device=logits.device), minlength=logits.shape[-1])
        logits[row] -= sampling.presence_penalty * (counts > 0) + sampling.frequency_penalty * counts
    return logits


def _column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, device=like.device, dtype=like.dtype).unsqueeze(1)
