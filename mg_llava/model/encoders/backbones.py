"""Backbones of transformers with feature maps as high-resolution encoders: DINOv3's ConvNeXt, Swin."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mg_llava.model.encoders.base import ConfigSource, HighResEncoder
from mg_llava.model.encoders.loading import build_transformers
from mg_llava.pictures.frames import FrameSize

_FIRST_STRIDE = 4
"""Pixels per cell of the first stage where a config has no ``patch_size``: DINOv3's ConvNeXt."""


class BackboneEncoder(HighResEncoder):
    """All stages of a backbone of transformers; arguments and attributes as of `HighResEncoder`."""

    model_class: ClassVar[str]

    def __init__(
        self,
        path: ConfigSource,
        image_size: FrameSize = 768,
        channels_last: bool = True,
        drop_path_rate: float | None = None,
    ) -> None:
        super().__init__(path, image_size, channels_last, drop_path_rate)
        stages = [f"stage{number + 1}" for number in range(len(self.config.get("depths")))]
        # norms of the maps start as the identity does; a folder of the plain model has none
        unread = ("hidden_states_norms.", "swin.layernorm.", "layernorm.", "layer_norm.")
        settings: dict[str, Any] = {} if drop_path_rate is None else {"drop_path_rate": drop_path_rate}
        model = build_transformers(self.model_class, self.config, self.role, unread, out_features=stages, **settings)
        self.model: Any = model
        if not model.supports_gradient_checkpointing:
            # set by `checkpoint_activations`: all is computed again, where the library cannot do it layer by layer
            self.grad_checkpointing = False
        first = self.config.get("patch_size", _FIRST_STRIDE)
        self.set_stages(model.channels, [first * 2**number for number in range(len(stages))])

    def exported_config(self) -> dict[str, Any]:
        """The content of the model's config.json."""
        return self.model.config.to_dict()

    @property
    def layers(self) -> Iterable[nn.Module]:
        """The model's stages, first to last."""
        inner = getattr(self.model, "swin", getattr(self.model, "model", self.model))
        encoder = getattr(inner, "encoder", inner)
        return getattr(encoder, "stages", None) or encoder.layers

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """(I, 3, S, S) → one (I, C_i, S / stride_i, S / stride_i) per stage, finest first."""
        pixels = pixels.to(next(self.parameters()).dtype, memory_format=self.memory_format)
        if getattr(self, "grad_checkpointing", False) and torch.is_grad_enabled():
            return list(checkpoint(self._maps, pixels, use_reentrant=False))
        return list(self._maps(pixels))

    def _maps(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(self.model(pixels).feature_maps)


class Dinov3ConvNeXt(BackboneEncoder):
    """DINOv3's ConvNeXt."""

    families = ("dinov3_convnext",)
    model_class = "DINOv3ConvNextBackbone"


class SwinEncoder(BackboneEncoder):
    """Swin transformer, with a norm per stage as transformers' backbone has it."""

    families = ("swin",)
    model_class = "SwinBackbone"
