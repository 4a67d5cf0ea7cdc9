"""SigLIP and SigLIP 2 as low-resolution encoders."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from mg_llava.model.encoders.vision_transformer import TransformersEncoder


class SiglipEncoder(TransformersEncoder):
    """SigLIP's vision transformer; the fixed-resolution folders of SigLIP 2 are of this family too."""

    families = ("siglip_vision_model", "siglip")
    model_class = "SiglipVisionModel"
    overrides = {"vision_use_head": False}

    def arguments(self) -> dict[str, Any]:
        """Interpolates the position embeddings where the picture is not of the published size."""
        return {"interpolate_pos_encoding": True} if self.is_resized else {}


class Siglip2Encoder(TransformersEncoder):
    """SigLIP 2 of the NaFlex kind, at one square size: patches are cut here, since the model takes them one by one."""

    families = ("siglip2_vision_model", "siglip2")
    model_class = "Siglip2VisionModel"
    overrides = {"vision_use_head": False}

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(I, 3, s, s) → (I, V, C), tokens row by row."""
        patch = self.config.get("patch_size")
        pixels = pixels.to(next(self.parameters()).dtype)
        # a patch's numbers in the order of the library's processor: rows, columns, colours
        patches = functional.unfold(pixels, patch, stride=patch).transpose(1, 2)
        patches = patches.unflatten(2, (pixels.shape[1], patch * patch)).transpose(2, 3).flatten(2)
        count = len(patches)
        return self.wrapped(
            pixel_values=patches,
            pixel_attention_mask=torch.ones(count, self.num_tokens, dtype=torch.int32, device=pixels.device),
            spatial_shapes=torch.tensor(self.grid, device=pixels.device).expand(count, 2),
        ).last_hidden_state
