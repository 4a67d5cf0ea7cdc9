"""CLIP and MetaCLIP 2 as low-resolution encoders."""

from __future__ import annotations

from typing import Any

from mg_llava.model.encoders.vision_transformer import TransformersEncoder


class ClipEncoder(TransformersEncoder):
    """CLIP's vision transformer (OpenAI's, LAION's, MetaCLIP 1); the published model's low-resolution encoder."""

    families = ("clip_vision_model", "clip")
    model_class = "CLIPVisionModel"
    part_name = "clip"
    num_prefix_tokens = 1

    def strip(self) -> None:
        """Takes nothing away: checkpoints and exports hold all weights of CLIP's layers."""

    def arguments(self) -> dict[str, Any]:
        """Interpolates the position embeddings where the picture is not of the published size."""
        return {"interpolate_pos_encoding": True} if self.is_resized else {}


class MetaClip2Encoder(TransformersEncoder):
    """MetaCLIP 2's vision transformer."""

    families = ("metaclip_2_vision_model", "metaclip_2")
    model_class = "MetaClip2VisionModel"
    num_prefix_tokens = 1

    def arguments(self) -> dict[str, Any]:
        """As of `ClipEncoder`."""
        return {"interpolate_pos_encoding": True} if self.is_resized else {}
