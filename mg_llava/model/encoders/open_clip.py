"""The ConvNeXt of an open_clip model as the high-resolution encoder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from xtuner.errors import XTunerError
from xtuner.json_values import read_json
from xtuner.model.files.weight_files import read_state_dict
from xtuner.model.meta import in_meta_init

_TRUNK = "visual.trunk."
_OPEN_CLIP_WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "model.safetensors",
    "open_clip_pytorch_model.bin",
)


def read_trunk_config(path: str | Mapping[str, Any]) -> dict[str, Any]:
    """Returns ``vision_cfg`` of an open_clip folder, or of the content of its ``open_clip_config.json``.

    Under `meta_init` a folder that is not there is described by the open_clip architecture in its name.

    Raises:
        XTunerError: no or malformed open_clip_config.json, or an encoder that is not one of timm's.
    """
    if isinstance(path, Mapping):
        return dict(path.get("model_cfg", path)["vision_cfg"])
    file = Path(path) / "open_clip_config.json"
    if file.is_file():
        config = read_json(file, dict)
        config = config.get("model_cfg", config)
    else:
        config = _named_open_clip_config(path) if in_meta_init() else None
    if config is None:
        raise XTunerError(
            f"the high-resolution encoder's folder '{path}' has no open_clip_config.json: give a folder as "
            "open_clip publishes it, with its weights beside it (setting visual_encoder_aux_path)."
        )
    vision: dict[str, Any] = config.get("vision_cfg", {})
    if "timm_model_name" not in vision:
        raise XTunerError(f"'{path}' names no timm model in vision_cfg: expected a ConvNeXt of open_clip.")
    return vision


def _named_open_clip_config(path: str) -> dict[str, Any] | None:
    # imported late: open_clip takes seconds, and only descriptions of absent folders need it
    from open_clip.factory import get_model_config, list_models

    names = [name for name in list_models() if name in Path(path).name]
    return get_model_config(max(names, key=len)) if names else None


class HighResEncoder(nn.Module):
    """ConvNeXt trunk of an open_clip model: (I, 3, S, S) normalised pixels → its four stage maps.

    Args:
        path: folder with ``open_clip_config.json`` and weights (.safetensors or .bin); text tower and head
            are not read. Under `meta_init` the content of ``open_clip_config.json`` will do.
        image_size: S, side of the pictures in pixels.
        channels_last: keep maps with the channels innermost in memory, as ConvNeXt's normalisations and pointwise
            layers want them; the numbers stay.
        drop_path_rate: share of blocks that training skips at random, the last ones most often; None = as the folder
            says (``timm_drop_path``). A frozen encoder skips none.

    Attributes:
        channels: C_i of each stage map. strides: pixels per cell of each stage map. image_size: S. trunk_config:
            ``vision_cfg`` as read.

    Raises:
        XTunerError: the folder or its weights are absent, incomplete or of another shape, or S is no multiple
            of the strides.
    """

    def __init__(
        self,
        path: str | Mapping[str, Any],
        image_size: int = 768,
        channels_last: bool = True,
        drop_path_rate: float | None = None,
    ) -> None:
        super().__init__()
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        config = read_trunk_config(path)
        # acts only where the encoder is trained
        drop_path = config.get("timm_drop_path") if drop_path_rate is None else drop_path_rate
        trunk: Any = timm.create_model(
            config["timm_model_name"], pretrained=False, num_classes=0, drop_path_rate=drop_path or 0.0
        )
        self.stem = trunk.stem
        self.stages = trunk.stages
        self.channels: list[int] = [stage["num_chs"] for stage in trunk.feature_info]
        self.strides: list[int] = [stage["reduction"] for stage in trunk.feature_info]
        self.image_size = image_size
        if image_size % self.strides[-1]:
            raise XTunerError(
                f"the high-resolution picture is {image_size} px wide, which its encoder's stride of "
                f"{self.strides[-1]} px does not divide: choose a multiple of it (setting image_size_aux)."
            )
        self.trunk_config = config
        if not in_meta_init():
            self._load(str(path))

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the last stage map."""
        side = self.image_size // self.strides[-1]
        return side, side

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
                f"{', '.join(_OPEN_CLIP_WEIGHTS)}. Download the whole folder."
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
