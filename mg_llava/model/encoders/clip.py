"""CLIP's vision transformer as the low-resolution encoder."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from mg_llava.pictures.encoder_config import read_clip_config
from xtuner.errors import XTunerError, counted
from xtuner.model.files.pickles import pickles_in, restricted_loading
from xtuner.model.files.quiet import quiet_transformers
from xtuner.model.meta import in_meta_init


class LowResEncoder(nn.Module):
    """CLIP's vision transformer: (I, 3, s, s) normalised pixels → (I, V, C) tokens, class token dropped.

    Args:
        name_or_path: folder or hub name of a CLIP model as transformers saves it; under `meta_init` its config will do.
        select_layer: which hidden state is read, counted from the end: −1 the last layer's output, −2 the one
            before it. Layers above it are not built into the model.

    Attributes:
        name_or_path: as given.
        channels: C.
        grid: (h, w) with V = h·w.
        num_tokens: V.
        image_size: s, in pixels.

    Raises:
        XTunerError: the folder cannot be read, or has fewer layers than `select_layer` asks for.
    """

    def __init__(self, name_or_path: str | CLIPVisionConfig, select_layer: int = -2) -> None:
        super().__init__()
        config = read_clip_config(name_or_path)
        name_or_path = str(config.name_or_path) if isinstance(name_or_path, CLIPVisionConfig) else name_or_path
        kept = config.num_hidden_layers + 1 + select_layer
        if not (select_layer < 0 < kept):
            raise XTunerError(
                f"select_layer is {select_layer}: expected -{config.num_hidden_layers} to -1, since "
                f"'{name_or_path}' has {config.num_hidden_layers} layers."
            )
        self.clip = CLIPVisionModel(config) if in_meta_init() else _load_clip(name_or_path)
        # older transformers wrap the transformer once more
        encoder = getattr(self.clip, "vision_model", self.clip).encoder
        del encoder.layers[kept:]
        self.name_or_path = name_or_path
        self.channels: int = config.hidden_size
        self.image_size = cast(int, config.image_size)
        side = self.image_size // cast(int, config.patch_size)
        self.grid: tuple[int, int] = (side, side)
        self.num_tokens: int = side * side

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(I, 3, s, s) → (I, V, C), tokens row by row."""
        dtype = next(self.parameters()).dtype
        return self.clip(pixel_values=pixels.to(dtype)).last_hidden_state[:, 1:]


def _load_clip(name_or_path: str) -> CLIPVisionModel:
    try:
        with restricted_loading(pickles_in(name_or_path)), quiet_transformers():
            loaded: Any = CLIPVisionModel.from_pretrained(name_or_path, output_loading_info=True)
    except OSError as error:
        raise XTunerError(
            f"the weights of the low-resolution encoder '{name_or_path}' cannot be read: {str(error).splitlines()[0]}"
        ) from error
    model, info = loaded
    # transformers fills what is absent with random numbers and only warns
    missing = sorted(key for key in info["missing_keys"] if "position_ids" not in key)
    if missing:
        raise XTunerError(
            f"'{name_or_path}' lacks {counted(len(missing), 'weights')} of a CLIP vision model, e.g. {missing[0]}: "
            "give a complete CLIP checkpoint."
        )
    return model
