"""Any model of timm with feature maps as high-resolution encoder."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from mg_llava.model.encoders.base import ConfigSource, HighResEncoder
from mg_llava.model.encoders.loading import check_timm_weights, read_timm_weights
from mg_llava.pictures.encoder_config import TIMM, create_timm
from mg_llava.pictures.frames import FrameSize, sides
from xtuner.errors import XTunerError
from xtuner.model.meta import in_meta_init


class TimmFeatureEncoder(HighResEncoder):
    """Feature maps of a timm model (ConvNeXt-V2, Swin, EfficientNet, …), in a folder as timm or the Hub saves it.

    Arguments and attributes as of `HighResEncoder`.
    """

    families = (TIMM,)

    def __init__(
        self,
        path: ConfigSource,
        image_size: FrameSize = 768,
        channels_last: bool = True,
        drop_path_rate: float | None = None,
    ) -> None:
        super().__init__(path, image_size, channels_last, drop_path_rate)
        arguments: dict[str, Any] = {"features_only": True, **self._size_argument()}
        if drop_path_rate is not None:
            arguments["drop_path_rate"] = drop_path_rate
        if not in_meta_init():
            state = read_timm_weights(self.config)
            with torch.device("meta"):
                whole = create_timm(self.config, num_classes=0, global_pool="")
            check_timm_weights(whole, state, self.config)
            # timm loads them itself: the names of a net of features differ from those in the file
            arguments.update(pretrained=True, pretrained_cfg_overlay={"state_dict": state, "source": ""})
        self.model: Any = create_timm(self.config, **arguments)
        self.set_stages(self.model.feature_info.channels(), self.model.feature_info.reduction())
        if self.strides != sorted(self.strides):
            raise XTunerError(f"{self.config.described}, whose maps have the strides {self.strides}: expected rising.")
        self.colours_last = str(getattr(self.model, "output_fmt", "")).endswith("NHWC")

    def _size_argument(self) -> dict[str, Any]:
        """Models with windows or tables for a fixed size are built for this one."""
        import timm

        known: Any = timm.get_pretrained_cfg(str(self.config.get("architecture")), allow_unregistered=True)
        return {"img_size": sides(self.image_size)} if getattr(known, "fixed_input_size", False) else {}

    @property
    def layers(self) -> Iterable[nn.Module]:
        """The model's parts in order, stem first."""
        return list(self.model.children())

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """(I, 3, S, S) → one (I, C_i, S / stride_i, S / stride_i) per stage, finest first."""
        maps = self.model(pixels.to(next(self.parameters()).dtype, memory_format=self.memory_format))
        return [stage.permute(0, 3, 1, 2) for stage in maps] if self.colours_last else list(maps)
