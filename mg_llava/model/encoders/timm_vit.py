"""Any vision transformer of timm as low-resolution encoder."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from mg_llava.model.encoders.base import ConfigSource, LowResEncoder
from mg_llava.model.encoders.loading import load_timm
from mg_llava.model.encoders.vision_transformer import layers_to_keep
from mg_llava.pictures.encoder_config import TIMM, create_timm
from mg_llava.pictures.frames import FrameSize
from xtuner.errors import XTunerError
from xtuner.model.meta import in_meta_init


class TimmViTEncoder(LowResEncoder):
    """A vision transformer of timm, in a folder as ``timm.models.save_for_hf`` or the Hub writes it."""

    families = (TIMM,)

    def __init__(self, name_or_path: ConfigSource, select_layer: int = -2, image_size: FrameSize | None = None) -> None:
        super().__init__(name_or_path, select_layer, image_size)
        # without pooling and classes no head is built; resized positions are interpolated picture by picture
        resized = {"dynamic_img_size": True} if self.is_resized else {}
        model = create_timm(self.config, num_classes=0, global_pool="", **resized)
        if not (hasattr(model, "blocks") and hasattr(model, "norm")):
            raise XTunerError(
                f"{self.config.described}, which is no vision transformer with blocks: take one, or give it as "
                "high_res_encoder if it makes feature maps."
            )
        model.norm = nn.Identity()
        if not in_meta_init():
            load_timm(model, self.config)
        kept = layers_to_keep(select_layer, len(model.blocks), self.name_or_path)
        model.blocks = model.blocks[:kept]
        self.model = model
        self.channels: int = model.embed_dim
        self.num_prefix_tokens: int = model.num_prefix_tokens

    @property
    def layers(self) -> Iterable[nn.Module]:
        """The blocks that are built, first to last."""
        return self.model.blocks

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(I, 3, s, s) → (I, V, C), tokens row by row."""
        states = self.model.forward_features(pixels.to(next(self.parameters()).dtype))
        return states[:, self.num_prefix_tokens :]
