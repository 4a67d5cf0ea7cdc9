"""Keys and values of a conversation kept from turn to turn: what was read once is not read again."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache, PreTrainedModel

from mg_llava.inference.prompts import Prompt
from xtuner.constants import PICTURE_INDICES

if TYPE_CHECKING:
    from mg_llava.model.mg_llava import MGLLaVA


def cache_argument(llm: PreTrainedModel) -> str:
    """Returns the name under which a language model takes its cache: ``cache`` since transformers 5.24."""
    return "cache" if "cache" in inspect.signature(llm.forward).parameters else "past_key_values"


class PromptCache:
    """The language model's state after a conversation so far.

    Of a new prompt, what it has in common with the conversation (text, and pictures with the same boxes) is taken from
    the cache; only the rest is encoded and read.

    Args:
        model: in eval mode.

    Attributes:
        num_read: tokens that the last call of `generate` read, the answer's not counted.
    """

    def __init__(self, model: MGLLaVA) -> None:
        self.model = model
        self.num_read = 0
        self.reset()

    def reset(self) -> None:
        """Forgets everything."""
        self._keys: list[int] = []
        # without the model's config: layers that would drop what lies outside their window could not be cut back
        self._cache = DynamicCache()

    @torch.inference_mode()
    def generate(self, prompt: Prompt, **generation: Any) -> list[int]:
        """Returns the ids of the answer to `prompt`; greedy unless `generation` says otherwise.

        What interrupts it (Ctrl-C, an error of the streamer) leaves the cache as it was before the call.
        """
        keys, widths = self._expand(prompt)
        # the last token has to be read anew: the answer's first comes from it
        shared = min(_common(self._keys, keys), len(keys) - 1)
        self._cut(shared)
        try:
            embeds = self._embed(prompt, widths, shared)
            self.num_read = embeds.shape[1]
            if embeds.shape[1] > 1:
                self._read(embeds[:, :-1])
            ids = torch.tensor([[max(key, 0) for key in keys]], device=embeds.device)
            streamer = generation.pop("streamer", None)
            arguments = {cache_argument(self.model.llm): self._cache, **generation}
            output = self.model.llm.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                streamer=None if streamer is None else _AnswerOnly(streamer),
                **arguments,
            )
        except BaseException:
            self._cut(shared)
            raise
        answer = output[0, len(keys) :].tolist()
        # the last token was made and not read
        self._keys = [*keys, *answer][: self._cache.get_seq_length()]
        return answer

    def _expand(self, prompt: Prompt) -> tuple[list[int], list[int]]:
        """A key per token that the language model reads, and how many each id takes.

        A key is the id of a text token, and for those of a picture a negative number made of its pixels and boxes.
        """
        keys: list[int] = []
        widths: list[int] = []
        number = 0
        for token in prompt.input_ids:
            if token in PICTURE_INDICES:
                boxes = prompt.boxes[number]
                objects = len(boxes) if self.model.object_encoder is not None else 0
                width = self.model.vision.image_tokens.count([token]) + objects
                content = str(token).encode() + prompt.pixel_values[number].numpy().tobytes()
                content += boxes[:objects].numpy().tobytes()
                keys += [-1 - int.from_bytes(hashlib.blake2b(content, digest_size=7).digest(), "big")] * width
                number += 1
            else:
                width = 1
                keys.append(token)
            widths.append(width)
        return keys, widths

    def _embed(self, prompt: Prompt, widths: Sequence[int], start: int) -> torch.Tensor:
        """What the language model reads from token `start` on, (1, T, D); pictures before it are not encoded."""
        ends = list(accumulate(widths))
        first = next(place for place, end in enumerate(ends) if end > start)
        pictures = sum(map(prompt.input_ids[:first].count, PICTURE_INDICES))
        data = {
            "input_ids": torch.tensor([prompt.input_ids[first:]]),
            "pixel_values": prompt.pixel_values[pictures:],
            "boxes": prompt.boxes[pictures:],
        }
        batch = self.model.data_preprocessor(data, training=False)
        for unused in ("labels", "position_ids", "target_positions", "targets", "attention_mask"):
            batch.pop(unused)
        before = ends[first] - widths[first]
        return self.model.embed(**batch)[:, start - before :]

    def _read(self, embeds: torch.Tensor) -> None:
        done = self._cache.get_seq_length()
        positions = torch.arange(done, done + embeds.shape[1], device=embeds.device).unsqueeze(0)
        arguments = {cache_argument(self.model.llm): self._cache}
        self.model.llm(inputs_embeds=embeds, position_ids=positions, use_cache=True, logits_to_keep=1, **arguments)

    def _cut(self, length: int) -> None:
        """Takes back what stands behind `length`; layer by layer, since an interruption may come between two."""
        layers: Any = self._cache.layers
        for layer in layers:
            surplus = layer.get_seq_length() - length
            if surplus > 0:
                layer.crop(-surplus)
        self._keys = self._keys[:length]


class _AnswerOnly:
    """Keeps the prompt from a streamer: most of it was streamed as an earlier answer."""

    def __init__(self, streamer: Any) -> None:
        self.streamer = streamer
        self._is_prompt = True

    def put(self, value: torch.Tensor) -> None:
        if self._is_prompt:
            self._is_prompt = False
        else:
            self.streamer.put(value)

    def end(self) -> None:
        self.streamer.end()


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Returns how many leading entries two lists share."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (left, right) in pairs if left != right), min(len(first), len(second)))
