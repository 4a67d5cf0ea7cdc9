"""Prompts that this package has prepared itself, as evaluation does, in the form that vLLM's ``LLM`` takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from mg_llava.inference.prompts import Prompt
from xtuner.constants import IMAGE_TOKEN_INDEX


@dataclass(frozen=True, eq=False)
class PreparedPicture:
    """A picture as the model takes it; vLLM's processor only hands it on.

    Attributes:
        pixels: (3, S, S) uint8.
        boxes: (N, 4) float32, those that become object tokens, xyxy in pixels of the S frame.
    """

    pixels: torch.Tensor
    boxes: torch.Tensor

    @property
    def cache_key(self) -> dict[str, Any]:
        """What tells this picture from others, boxes included."""
        return {"pixels": self.pixels.contiguous(), "boxes": self.boxes.contiguous()}


def token_prompt(prompt: Prompt, image_token_id: int) -> dict[str, Any]:
    """Returns a prompt for ``LLM.generate``: the very ids, pixels and boxes that `MGLLaVA.generate` would get.

    Args:
        prompt: of `Assistant.prepare`.
        image_token_id: of the folder's config or processor.
    """
    ids = [image_token_id if token == IMAGE_TOKEN_INDEX else token for token in prompt.input_ids]
    made: dict[str, Any] = {"prompt_token_ids": ids}
    if len(prompt.pixel_values):
        pairs = zip(prompt.pixel_values, prompt.boxes, strict=True)
        made["multi_modal_data"] = {"image": [PreparedPicture(pixels, boxes) for pixels, boxes in pairs]}
    return made
