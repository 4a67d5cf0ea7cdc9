"""Rows of a batch with their keys and values; rows join and leave between two tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional
from transformers import DynamicCache

from mg_llava.inference.prompt_cache import cache_argument
from mg_llava.serving.sampling import Sampling

if TYPE_CHECKING:
    from mg_llava.model.mg_llava import MGLLaVA


class RowBatch:
    """What the language model knows of each row: padded on the left, so that all rows end at the same place.

    Args:
        model: in eval mode.
    """

    def __init__(self, model: MGLLaVA) -> None:
        self.model = model
        self._argument = cache_argument(model.llm)
        self._clear()

    def _clear(self) -> None:
        self._cache = DynamicCache()
        self._mask = torch.zeros((0, 0), dtype=torch.long)
        self._logits = torch.zeros((0, 0))

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._mask)

    def step(self, tokens: Sequence[int]) -> None:
        """Reads each row's next token."""
        ids = torch.tensor(tokens, device=self._logits.device).unsqueeze(1)
        positions = self._mask.sum(1, keepdim=True)
        self._mask = functional.pad(self._mask, (0, 1), value=1)
        output = self.model.llm(
            input_ids=ids,
            attention_mask=self._mask,
            position_ids=positions,
            use_cache=True,
            **{self._argument: self._cache},
        )
        self._logits = output.logits[:, -1].float()

    def join(self, prompts: Mapping[str, Any]) -> None:
        """Reads new rows' prompts and puts them below the others.

        Args:
            prompts: as `collate_prompts` joins them.
        """
        batch = self.model.data_preprocessor(prompts, training=False, pad_left=True)
        for unused in ("labels", "target_positions", "targets"):
            batch.pop(unused)
        mask, positions = batch.pop("attention_mask").long(), batch.pop("position_ids")
        cache = DynamicCache()
        output = self.model.llm(
            inputs_embeds=self.model.embed(**batch),
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            logits_to_keep=1,
            **{self._argument: cache},
        )
        logits = output.logits[:, -1].float()
        if not len(self):
            self._cache, self._mask, self._logits = cache, mask, logits
            return
        length = max(self._mask.shape[1], mask.shape[1])
        layers: Any = zip(self._cache.layers, cache.layers, strict=True)
        for own, new in layers:
            own.keys = torch.cat([_widen(own.keys, length), _widen(new.keys, length)])
            own.values = torch.cat([_widen(own.values, length), _widen(new.values, length)])
        self._mask = torch.cat([functional.pad(rows, (length - rows.shape[1], 0)) for rows in (self._mask, mask)])
        self._logits = torch.cat([self._logits, logits])

    def keep(self, rows: Sequence[int]) -> None:
        """Frees all rows but `rows`, and the columns that were only theirs."""
        if not rows:
            self._clear()
            return
        index = torch.tensor(rows, device=self._mask.device)
        self._mask = self._mask[index]
        self._logits = self._logits[index]
        # the shortest padding of those that stay
        start = int((self._mask.cumsum(1) == 0).sum(1).min())
        self._mask = self._mask[:, start:].contiguous()
        layers: Any = self._cache.layers
        for layer in layers:
            layer.keys = layer.keys[index, :, start:].contiguous()
            layer.values = layer.values[index, :, start:].contiguous()

    def sample(self, wanted: Sequence[tuple[Sampling, torch.Generator | None]]) -> list[int]:
        """Returns the next token of each row, as its request wants it chosen."""
        greedy = self._logits.argmax(-1)
        rows = [row for row, (sampling, _) in enumerate(wanted) if sampling.temperature > 0]
        if rows:
            index = torch.tensor(rows, device=greedy.device)
            heat = torch.tensor([wanted[row][0].temperature for row in rows], device=greedy.device).unsqueeze(1)
            share = torch.tensor([wanted[row][0].top_p for row in rows], device=greedy.device).unsqueeze(1)
            probabilities = _nucleus((self._logits[index] / heat).softmax(-1), share)
            drawn = [
                torch.multinomial(row, 1, generator=wanted[number][1])
                for row, number in zip(probabilities, rows, strict=True)
            ]
            greedy[index] = torch.cat(drawn)
        return greedy.tolist()


def _widen(states: torch.Tensor, length: int) -> torch.Tensor:
    """(B, heads, T, D) padded on the left to `length` tokens."""
    return functional.pad(states, (0, 0, length - states.shape[2], 0))


def _nucleus(probabilities: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Zero outside of the smallest set of tokens that together have at least `share`; (B, vocabulary)."""
    ordered, order = probabilities.sort(-1, descending=True)
    outside = ordered.cumsum(-1) - ordered >= share
    ordered = ordered.masked_fill(outside, 0.0)
    return torch.zeros_like(probabilities).scatter(-1, order, ordered)
