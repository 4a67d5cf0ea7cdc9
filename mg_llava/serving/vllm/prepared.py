"""Prompts that this package has prepared itself, as evaluation does, in the form that vLLM's ``LLM`` takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mg_llava.inference.prompts import Prompt
from xtuner.constants import FRAME_TOKEN_INDEX, PICTURE_INDICES


@dataclass(frozen=True, eq=False)
class PreparedPicture:
    """A picture as the model takes it; vLLM's processor only hands it on.

    Attributes:
        pixels: (3, S, S) uint8.
        boxes: (N, 4) float32, those that become object tokens, xyxy in pixels of the S frame.
        is_frame: a frame of a video, which may take fewer tokens.
    """

    pixels: torch.Tensor
    boxes: torch.Tensor
    is_frame: bool = False

    @property
    def cache_key(self) -> dict[str, Any]:
        """What tells this picture from others, boxes included."""
        return {"pixels": self.pixels.contiguous(), "boxes": self.boxes.contiguous(), "is_frame": self.is_frame}


def in_vocabulary(ids: Sequence[int], vocab_size: int, tokenizer: Any) -> list[int]:
    """Returns a prompt's ids, one of the language model's in the place of each that is none, as that of ``<image>`` is.

    Args:
        ids: of the prompt.
        vocab_size: logits of the language model.
        tokenizer: its bos, which stands in every prompt, takes the place, so that no penalty sees a new token; its eos
            where it has none.
    """
    bos = tokenizer.bos_token_id
    stand_in = tokenizer.eos_token_id if bos is None else bos
    return [token if token < vocab_size else stand_in for token in ids]


def token_prompt(prompt: Prompt, image_token_id: int) -> dict[str, Any]:
    """Returns a prompt for ``LLM.generate``: the very ids, pixels and boxes that `MGLLaVA.generate` would get.

    Args:
        prompt: of `Assistant.prepare`.
        image_token_id: of the folder's config or processor.
    """
    ids = [image_token_id if token in PICTURE_INDICES else token for token in prompt.input_ids]
    made: dict[str, Any] = {"prompt_token_ids": ids}
    if len(prompt.pixel_values):
        frames = [token == FRAME_TOKEN_INDEX for token in prompt.input_ids if token in PICTURE_INDICES]
        each = zip(prompt.pixel_values, prompt.boxes, frames, strict=True)
        made["multi_modal_data"] = {"image": [PreparedPicture(*picture) for picture in each]}
    return made
