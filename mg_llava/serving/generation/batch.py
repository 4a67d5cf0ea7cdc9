"""Rows of a batch with their keys and values; rows join and leave between two tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional
from transformers import DynamicCache

from mg_llava.inference.prompt_cache import cache_argument
from mg_llava.serving.generation.sampling import Draw, choose
from xtuner.log import get_logger

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
        """Reads each row's next token; where that fails, the rows stay as they were."""
        before = self._mask
        ids = torch.tensor(tokens, device=self._logits.device).unsqueeze(1)
        positions = before.sum(1, keepdim=True)
        mask = functional.pad(before, (0, 1), value=1)
        try:
            output = self.model.llm(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                use_cache=True,
                **{self._argument: self._cache},
            )
            logits = output.logits[:, -1].float()
        except Exception:
            self._cut(before.shape[1])
            raise
        self._mask, self._logits = mask, logits

    def _cut(self, length: int) -> None:
        """Takes back what a step that failed wrote: some layers may have the new token, others not."""
        layers: Any = self._cache.layers
        for layer in layers:
            layer.keys = layer.keys[:, :, :length]
            layer.values = layer.values[:, :, :length]

    def take(self, rows: Sequence[int]) -> RowBatch:
        """Returns a copy of `rows` as a batch of their own."""
        taken = RowBatch(self.model)
        index = torch.tensor(rows, device=self._mask.device)
        taken._mask, taken._logits = self._mask[index], self._logits[index]
        layers: Any = self._cache.layers
        for number, layer in enumerate(layers):
            taken._cache.update(layer.keys[index], layer.values[index], number)
        return taken

    def join(self, prompts: Mapping[str, Any]) -> None:
        """Reads new rows' prompts and puts them below the others; where that fails, the others stay as they were.

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
        self._append(cache, mask, logits)

    def append(self, other: RowBatch) -> None:
        """Puts the rows of another batch below these; where that fails, these stay as they were."""
        if len(other):
            self._append(other._cache, other._mask, other._logits)

    def _append(self, cache: DynamicCache, mask: torch.Tensor, logits: torch.Tensor) -> None:
        if not len(self):
            self._cache, self._mask, self._logits = cache, mask, logits
            return
        count, before = self._mask.shape
        length = max(before, mask.shape[1])
        layers: list[Any] = list(self._cache.layers)
        joined = 0
        try:
            masks = torch.cat([functional.pad(rows, (length - rows.shape[1], 0)) for rows in (self._mask, mask)])
            logits = torch.cat([self._logits, logits])
            # layer by layer, so that only one stands in memory twice
            new: Any
            for layer, new in zip(layers, cache.layers, strict=True):
                keys = torch.cat([_widen(layer.keys, length), _widen(new.keys, length)])
                values = torch.cat([_widen(layer.values, length), _widen(new.values, length)])
                layer.keys, layer.values = keys, values
                joined += 1
        except Exception:
            for layer in layers[:joined]:
                layer.keys = layer.keys[:count, :, length - before :]
                layer.values = layer.values[:count, :, length - before :]
            raise
        self._mask, self._logits = masks, logits

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

    def sample(self, draws: Sequence[Draw]) -> list[int | None]:
        """Returns the next token of each row, None for a row that has none; see `choose`."""
        try:
            return choose(self._logits, draws)
        except Exception:
            get_logger().exception("a draw failed: each row draws alone, those that fail again are dropped")
            return [self._sample_alone(row, draw) for row, draw in enumerate(draws)]

    def _sample_alone(self, row: int, draw: Draw) -> int | None:
        try:
            return choose(self._logits[row : row + 1], [draw])[0]
        except Exception:
            get_logger().exception("row %d cannot be drawn", row)
            return None


def _widen(states: torch.Tensor, length: int) -> torch.Tensor:
    """(B, heads, T, D) padded on the left to `length` tokens."""
    return functional.pad(states, (0, 0, length - states.shape[2], 0))
