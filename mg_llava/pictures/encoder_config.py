"""What an image encoder's folder says of its pictures and tokens, read without its weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import CLIPVisionConfig

from xtuner.errors import XTunerError
from xtuner.model.meta import architecture_file, in_meta_init


@dataclass(frozen=True)
class PixelStatistics:
    """What an encoder's `preprocessor_config.json` says of its pixels.

    Attributes:
        mean: of red, green, blue, on the 0–1 scale.
        std: likewise.
        crops: pictures keep their shape and lose their margins (CLIP); else they are squeezed to a square
            (SigLIP).
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crops: bool

    @property
    def pad_color(self) -> tuple[int, int, int]:
        """The mean colour in whole grey levels, rounded down as the published preprocessing does."""
        red, green, blue = (int(value * 255) for value in self.mean)
        return red, green, blue


def read_pixel_statistics(name_or_path: str) -> PixelStatistics:
    """Reads the `preprocessor_config.json` of an image encoder.

    Args:
        name_or_path: its folder, or its name on the Hugging Face hub.

    Raises:
        XTunerError: there is none, or it gives no mean and deviation of three channels.
    """
    from transformers import ImageProcessingMixin

    try:
        content: Mapping[str, Any] = ImageProcessingMixin.get_image_processor_dict(name_or_path)[0]
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise XTunerError(
            f"the image preprocessing of '{name_or_path}' cannot be read: {reason}. Expected a folder with "
            "preprocessor_config.json, or a hub name and network access (visual_encoder_name_or_path)."
        ) from error
    mean = _three_numbers(content, "image_mean", name_or_path)
    std = _three_numbers(content, "image_std", name_or_path)
    # absent in SigLIP's files, true in CLIP's
    return PixelStatistics(mean, std, bool(content.get("do_center_crop", False)))


def _three_numbers(content: Mapping[str, Any], key: str, name: str) -> tuple[float, float, float]:
    value = content.get(key)
    if not (isinstance(value, (list, tuple)) and len(value) == 3):
        raise XTunerError(f"preprocessor_config.json of '{name}': {key}={value!r}, expected three numbers.")
    red, green, blue = map(float, value)
    return red, green, blue


def read_clip_config(name_or_path: str | CLIPVisionConfig) -> CLIPVisionConfig:
    """Returns the vision config of a CLIP folder or hub name; under `meta_init` of the shipped description.

    A config that is already read is returned as it is.

    Raises:
        XTunerError: no config is found.
    """
    if isinstance(name_or_path, CLIPVisionConfig):
        return name_or_path
    shipped = architecture_file(name_or_path) if in_meta_init() and not Path(name_or_path).is_dir() else None
    if shipped is not None:
        return CLIPVisionConfig(**json.loads(shipped.read_text(encoding="utf-8")))
    try:
        return CLIPVisionConfig.from_pretrained(name_or_path)
    except (OSError, ValueError) as error:
        raise XTunerError(
            f"the low-resolution encoder '{name_or_path}' cannot be read: {str(error).splitlines()[0]} "
            "Give a CLIP folder with config.json, or a hub name and network access (visual_encoder_name_or_path)."
        ) from error


def read_num_image_tokens(name_or_path: str) -> int:
    """Returns how many tokens a low-resolution encoder makes of a picture, from its config.json.

    Raises:
        XTunerError: the file cannot be read.
    """
    config = read_clip_config(name_or_path)
    sides: tuple[Any, Any] = (config.image_size, config.patch_size)
    return (sides[0] // sides[1]) ** 2
