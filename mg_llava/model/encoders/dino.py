"""DINOv2 and DINOv3 as low-resolution encoders."""

from __future__ import annotations

from torch import nn

from mg_llava.model.encoders.base import ConfigSource
from mg_llava.model.encoders.vision_transformer import TransformersEncoder
from mg_llava.pictures.frames import FrameSize


class Dinov2Encoder(TransformersEncoder):
    """DINOv2's vision transformer without register tokens."""

    families = ("dinov2",)
    model_class = "Dinov2Model"
    num_prefix_tokens = 1

    @property
    def layers(self) -> nn.ModuleList:
        """The layers that are built, first to last."""
        return self.wrapped.encoder.layer


class Dinov2RegistersEncoder(Dinov2Encoder):
    """DINOv2's vision transformer with register tokens."""

    families = ("dinov2_with_registers",)
    model_class = "Dinov2WithRegistersModel"

    def __init__(self, name_or_path: ConfigSource, select_layer: int = -2, image_size: FrameSize | None = None) -> None:
        super().__init__(name_or_path, select_layer, image_size)
        self.num_prefix_tokens = 1 + self.config.get("num_register_tokens", 0)


class Dinov3Encoder(Dinov2RegistersEncoder):
    """DINOv3's vision transformer: rotary positions, so that pictures of any size fit."""

    families = ("dinov3_vit",)
    model_class = "DINOv3ViTModel"

    @property
    def layers(self) -> nn.ModuleList:
        """The layers that are built, first to last; older transformers have them one level up."""
        return getattr(self.wrapped, "model", self.wrapped).layer
