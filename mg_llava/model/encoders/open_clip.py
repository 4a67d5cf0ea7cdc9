"""The ConvNeXt of an open_clip model as the high-resolution encoder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from mg_llava.model.encoders.base import ConfigSource, HighResEncoder
from mg_llava.pictures.encoder_config import HIGH, OPEN_CLIP, EncoderConfig, read_encoder_config
from mg_llava.pictures.frames import FrameSize
from xtuner.errors import XTunerError
from xtuner.model.files.weight_files import read_state_dict
from xtuner.model.meta import in_meta_init

_TRUNK = "visual.trunk."
_OPEN_CLIP_WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "model.safetensors",
    "open_clip_pytorch_model.bin",
)


def read_trunk_config(source: ConfigSource | EncoderConfig) -> dict[str, Any]:
    """Returns ``vision_cfg`` of an open_clip folder, or of the content of its ``open_clip_config.json``.

    Raises:
        XTunerError: no or malformed open_clip_config.json, or an encoder that is not one of timm's.
    """
    config = read_encoder_config(source, HIGH)
    vision: dict[str, Any] = config.get("model_cfg", config.values).get("vision_cfg", {})
    if "timm_model_name" not in vision:
        raise XTunerError(f"'{config.source}' names no timm model in vision_cfg: expected a ConvNeXt of open_clip.")
    return dict(vision)


class OpenClipConvNeXt(HighResEncoder):
    """ConvNeXt trunk of an open_clip model; the published model's high-resolution encoder.

    Arguments and attributes as of `HighResEncoder`. The folder holds ``open_clip_config.json`` and weights
    (.safetensors or .bin), of which text tower and head are not read.
    """

    families = (OPEN_CLIP,)

    def __init__(
        self,
        path: ConfigSource,
        image_size: FrameSize = 768,
        channels_last: bool = True,
        drop_path_rate: float | None = None,
    ) -> None:
        super().__init__(path, image_size, channels_last, drop_path_rate)
        config = read_trunk_config(self.config)
        drop_path = config.get("timm_drop_path") if drop_path_rate is None else drop_path_rate
        try:
            trunk: Any = timm.create_model(
                config["timm_model_name"], pretrained=False, num_classes=0, drop_path_rate=drop_path or 0.0
            )
        except (RuntimeError, TypeError) as error:
            raise XTunerError(
                f"'{self.config.source}' has timm's {config['timm_model_name']} for pictures, which the installed timm "
                f"{timm.__version__} cannot build: {error}. Install a newer one, or take a ConvNeXt."
            ) from error
        if not (hasattr(trunk, "stem") and hasattr(trunk, "stages")):
            raise XTunerError(
                f"'{self.config.source}' has timm's {config['timm_model_name']} for pictures: expected a ConvNeXt."
            )
        self.stem = trunk.stem
        self.stages = trunk.stages
        info = trunk.feature_info
        self.set_stages([stage["num_chs"] for stage in info], [stage["reduction"] for stage in info])
        if not in_meta_init():
            self._load(self.config.source)

    def exported_config(self) -> dict[str, Any]:
        """What stands of pictures in ``open_clip_config.json``."""
        return {"vision_cfg": read_trunk_config(self.config)}

    @property
    def layers(self) -> Iterable[nn.Module]:
        """The stages, first to last."""
        return self.stages

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """(I, 3, S, S) → one (I, C_i, S / stride_i, S / stride_i) per stage, finest first."""
        pixels = pixels.to(next(self.parameters()).dtype, memory_format=self.memory_format)
        features = self.stem(pixels)
        maps = []
        for stage in self.stages:
            features = stage(features)
            maps.append(features)
        return maps

    def _load(self, path: str) -> None:
        files = [Path(path) / name for name in _OPEN_CLIP_WEIGHTS if (Path(path) / name).is_file()]
        if not files:
            raise XTunerError(
                f"the high-resolution encoder's folder '{path}' holds no weights: expected one of "
                f"{', '.join(_OPEN_CLIP_WEIGHTS)}; download the whole folder."
            )
        state = read_state_dict(files[0], prefix=_TRUNK)
        wanted = self.state_dict()
        wrong = [key for key in wanted if key not in state or state[key].shape != wanted[key].shape]
        if wrong:
            raise XTunerError(
                f"{files[0]} does not fit its open_clip_config.json: {len(wrong)} of the {len(wanted)} weights "
                f"{_TRUNK}* are absent or of another shape, e.g. {_TRUNK}{wrong[0]}."
            )
        self.load_state_dict({key: state[key] for key in wanted})
