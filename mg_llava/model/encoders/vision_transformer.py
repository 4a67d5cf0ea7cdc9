"""Low-resolution encoders that are a vision transformer of transformers: what all families do alike."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from mg_llava.model.encoders.base import ConfigSource, LowResEncoder
from mg_llava.model.encoders.loading import build_transformers
from mg_llava.pictures.frames import FrameSize
from xtuner.errors import XTunerError

FINAL_NORMS = ("post_layernorm", "layernorm", "norm", "rms_norm")
"""Names of the norm after the last layer, which hidden states are taken before."""


def layers_to_keep(select_layer: int, num_layers: int, name: str) -> int:
    """Returns how many of a transformer's layers a hidden state needs.

    Raises:
        XTunerError: there are fewer than `select_layer` asks for.
    """
    kept = num_layers + 1 + select_layer
    if not (select_layer < 0 < kept):
        raise XTunerError(
            f"select_layer is {select_layer}: expected -{num_layers} to -1, since '{name}' has {num_layers} layers."
        )
    return kept


class TransformersEncoder(LowResEncoder):
    """A vision transformer of transformers; arguments and attributes as of `LowResEncoder`.

    A family says its class in transformers (`model_class`) and, where they differ, how many tokens come before the
    picture's own, and which arguments its forward takes.

    Attributes:
        part_name: of the attribute that holds the model, which begins the names of its weights.
        overrides: values of the model's config, instead of the folder's.
    """

    model_class: ClassVar[str]
    part_name: ClassVar[str] = "model"
    overrides: ClassVar[dict[str, Any]] = {}
    key_mapping: ClassVar[dict[str, str] | None] = None
    """Pattern in a weight's name to what stands for it, where transformers does not find the vision part itself."""
    drops: ClassVar[tuple[str, ...]] = ("head",)
    """Parts of the model, by name, that no token depends on."""

    def __init__(self, name_or_path: ConfigSource, select_layer: int = -2, image_size: FrameSize | None = None) -> None:
        super().__init__(name_or_path, select_layer, image_size)
        self.check_size()
        kept = layers_to_keep(select_layer, self.config.get("num_hidden_layers"), self.name_or_path)
        unread = tuple(f"{name}." for name in (*FINAL_NORMS, *self.drops))
        model = build_transformers(self.model_class, self.config, self.role, unread, self.key_mapping, **self.overrides)
        setattr(self, self.part_name, model)
        self.channels: int = self.config.get("hidden_size")
        del self.layers[kept:]
        self.strip()

    def exported_config(self) -> Any:
        """The model's config in transformers."""
        return self.wrapped.config

    @property
    def wrapped(self) -> Any:
        """The model of transformers."""
        return getattr(self, self.part_name)

    @property
    def body(self) -> Any:
        """The part that holds embeddings and layers; older transformers wrap it once more."""
        return getattr(self.wrapped, "vision_model", self.wrapped)

    @property
    def layers(self) -> nn.ModuleList:
        """The layers that are built, first to last."""
        return self.body.encoder.layers

    def check_size(self) -> None:
        """Refuses pictures of a size that the family cannot take."""

    def strip(self) -> None:
        """Takes away what tokens do not depend on: final norm, pooling head, mask token."""
        body = self.body
        for name in FINAL_NORMS:
            if isinstance(getattr(body, name, None), nn.Module):
                setattr(body, name, nn.Identity())
        for name in self.drops:
            if isinstance(getattr(body, name, None), nn.Module):
                delattr(body, name)
        if getattr(body.embeddings, "mask_token", None) is not None:
            body.embeddings.mask_token = None

    def arguments(self) -> dict[str, Any]:
        """Returns what the model's forward takes beside the pixels."""
        return {}

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(I, 3, s, s) → (I, V, C), tokens row by row."""
        pixels = pixels.to(next(self.parameters()).dtype)
        states = self.wrapped(pixel_values=pixels, **self.arguments()).last_hidden_state
        return states[:, self.num_prefix_tokens :]
