"""Prompts that this package has prepared itself, as evaluation does, in the form that vLLM's ``LLM`` takes."""

from __future__ import annotations

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
