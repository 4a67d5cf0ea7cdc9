"""Tiny random encoders of every family, in folders that their own libraries write.

Low-resolution ones make 2 × 2 tokens. High-resolution ones make maps whose last has 2 × 2 cells at `HighFolder.size`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import transformers

from tests.tiny_parts import tiny_clip_folder, tiny_convnext_folder

MEAN, STD = [0.5, 0.25, 0.75], [0.5, 0.4, 0.3]
"""Statistics that no other encoder of the tests has."""
_SIZES = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 14}
_SIDED = {**_SIZES, "image_size": 28}

Pixels = torch.Tensor


@dataclass(frozen=True)
class LowFolder:
    """A folder, the class that reads it, and the library's own hidden states of all tokens, embeddings first."""

    path: Path
    kind: str
    prefix_tokens: int
    hidden_states: Callable[[Pixels], Sequence[torch.Tensor]]


@dataclass(frozen=True)
class HighFolder:
    """A folder, the class that reads it, the side of its pictures and the library's own maps."""

    path: Path
    kind: str
    size: int
    maps: Callable[[Pixels], Sequence[torch.Tensor]]


def write_statistics(folder: Path) -> None:
    """Writes a preprocessor_config.json."""
    content = {"image_mean": MEAN, "image_std": STD, "do_normalize": True, "do_center_crop": False}
    (folder / "preprocessor_config.json").write_text(json.dumps(content))


def _transformers(folder: Path, name: str, **config: Any) -> Any:
    torch.manual_seed(5)
    model = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**config)).eval()
    model.save_pretrained(folder)
    write_statistics(folder)
    return model


def _timm(folder: Path, name: str, **arguments: Any) -> Any:
    torch.manual_seed(5)
    model = timm.create_model(name, **arguments).eval()
    model.pretrained_cfg = {**model.pretrained_cfg, "mean": MEAN, "std": STD}
    timm.models.save_for_hf(model, str(folder), model_args=arguments or None, safe_serialization=True)
    return model


LOW_FAMILIES: dict[str, tuple[str, int, str, dict[str, Any]]] = {
    # name: class, tokens before the picture's own, class in transformers, its config
    "siglip": ("SiglipEncoder", 0, "SiglipVision", {**_SIDED, "intermediate_size": 48}),
    "siglip2": ("Siglip2Encoder", 0, "Siglip2Vision", {**_SIZES, "intermediate_size": 48, "num_patches": 4}),
    "dinov2": ("Dinov2Encoder", 1, "Dinov2", _SIDED),
    "dinov2_registers": ("Dinov2RegistersEncoder", 3, "Dinov2WithRegisters", {**_SIDED, "num_register_tokens": 2}),
    "dinov3": ("Dinov3Encoder", 3, "DINOv3ViT", {**_SIDED, "intermediate_size": 48, "num_register_tokens": 2}),
    "metaclip2": ("MetaClip2Encoder", 1, "MetaClip2Vision", {**_SIDED, "intermediate_size": 48}),
    "aimv2": ("Aimv2Encoder", 0, "Aimv2Vision", {**_SIDED, "intermediate_size": 48}),
}
LOW_NAMES = ("clip", *LOW_FAMILIES, "timm_vit", "timm_registers", "timm_eva")


def low_folder(name: str, parent: Path) -> LowFolder:
    """Writes the low-resolution encoder `name` of `LOW_NAMES`."""
    folder = parent / name
    if name == "clip":
        folder = tiny_clip_folder(parent)
        clip = transformers.CLIPVisionModel.from_pretrained(folder).eval()
        return LowFolder(folder, "ClipEncoder", 1, lambda p: clip(p, output_hidden_states=True).hidden_states)
    if name.startswith("timm"):
        shape = {"depth": 3, "embed_dim": 32, "num_heads": 2, "img_size": 28}
        architecture = {
            "timm_vit": "vit_base_patch14_dinov2",
            "timm_registers": "vit_base_patch14_reg4_dinov2",
            "timm_eva": "eva02_tiny_patch14_224",
        }[name]
        model = _timm(folder, architecture, **shape)
        prefix = model.num_prefix_tokens

        def states(pixels: Pixels) -> list[torch.Tensor]:
            layers = model.forward_intermediates(pixels, norm=False, output_fmt="NLC", intermediates_only=True)
            empty = torch.zeros(len(pixels), prefix, 32)
            return [torch.zeros(0), *(torch.cat([empty, layer], dim=1) for layer in layers)]

        return LowFolder(folder, "TimmViTEncoder", prefix, states)
    kind, prefix, library, config = LOW_FAMILIES[name]
    model = _transformers(folder, library, **config)

    def hidden_states(pixels: Pixels) -> Sequence[torch.Tensor]:
        inputs = patches_of(pixels) if name == "siglip2" else {"pixel_values": pixels}
        return model(**inputs, output_hidden_states=True).hidden_states

    return LowFolder(folder, kind, prefix, hidden_states)


def patches_of(pixels: Pixels) -> dict[str, torch.Tensor]:
    """Pixels (I, 3, 28, 28) as SigLIP 2's processor hands them over, cut patch by patch."""
    side = 14
    cut = [
        picture[:, row : row + side, column : column + side].permute(1, 2, 0).flatten()
        for picture in pixels
        for row in (0, side)
        for column in (0, side)
    ]
    return {
        "pixel_values": torch.stack(cut).view(len(pixels), 4, -1),
        "pixel_attention_mask": torch.ones(len(pixels), 4, dtype=torch.int32),
        "spatial_shapes": torch.tensor([[2, 2]] * len(pixels)),
    }


HIGH_TIMM: dict[str, tuple[str, int, dict[str, Any]]] = {
    "timm_convnext_v2": ("convnextv2_atto", 64, {"depths": (1, 1, 1, 1), "dims": (8, 12, 16, 24)}),
    "timm_efficientnet": ("test_efficientnet", 64, {}),
    "timm_resnet": ("test_resnet", 64, {}),
    "timm_swin": (
        "swin_tiny_patch4_window7_224",
        32,
        {"embed_dim": 12, "depths": (1, 2, 1), "num_heads": (1, 2, 3), "img_size": 32},
    ),
}
HIGH_BACKBONES: dict[str, tuple[str, str, int, dict[str, Any]]] = {
    "dinov3_convnext": (
        "Dinov3ConvNeXt",
        "DINOv3ConvNext",
        64,
        {"hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 1, 1]},
    ),
    "swin": (
        "SwinEncoder",
        "Swin",
        32,
        {"embed_dim": 12, "depths": [1, 2, 1], "num_heads": [1, 2, 3], "window_size": 4, "image_size": 64},
    ),
}
HIGH_NAMES = ("open_clip", *HIGH_TIMM, *HIGH_BACKBONES)


def high_folder(name: str, parent: Path) -> HighFolder:
    """Writes the high-resolution encoder `name` of `HIGH_NAMES`."""
    folder = parent / name
    if name == "open_clip":
        folder = tiny_convnext_folder(parent)
        torch.manual_seed(2)
        trunk: Any = timm.create_model("test_convnext", pretrained=False, num_classes=0).eval()
        return HighFolder(
            folder, "OpenClipConvNeXt", 64, lambda p: trunk.forward_intermediates(p, intermediates_only=True)
        )
    if name in HIGH_TIMM:
        architecture, size, arguments = HIGH_TIMM[name]
        model = _timm(folder, architecture, **arguments)
        overlay = {"state_dict": model.state_dict(), "source": ""}
        net = timm.create_model(
            architecture, features_only=True, pretrained=True, pretrained_cfg_overlay=overlay, **arguments
        ).eval()
        colours_last = "swin" in name
        return HighFolder(
            folder,
            "TimmFeatureEncoder",
            size,
            lambda pixels: [stage.permute(0, 3, 1, 2) if colours_last else stage for stage in net(pixels)],
        )
    kind, library, size, config = HIGH_BACKBONES[name]
    _transformers(folder, library, **config)
    stages = [f"stage{number + 1}" for number in range(len(config["depths"]))]
    backbone = getattr(transformers, f"{library}Backbone").from_pretrained(folder, out_features=stages).eval()
    return HighFolder(folder, kind, size, lambda pixels: backbone(pixels).feature_maps)
