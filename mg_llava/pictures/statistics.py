"""What an image encoder's folder says of its pixels: mean, deviation, and what becomes of margins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xtuner.errors import XTunerError, reason_of
from xtuner.json_values import read_json

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
OPEN_CLIP_FILE = "open_clip_config.json"
_BICUBIC = 3


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

    @property
    def scale(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation alone."""
        return self.mean, self.std


def read_pixel_statistics(name_or_path: str) -> PixelStatistics:
    """Reads the statistics of an image encoder; see `read_preprocessing`.

    Raises:
        XTunerError: there are none, or no mean and deviation of three channels.
    """
    content = read_preprocessing(name_or_path)
    mean = _three_numbers(content, "image_mean", name_or_path)
    std = _three_numbers(content, "image_std", name_or_path)
    # absent in SigLIP's files, true in CLIP's
    return PixelStatistics(mean, std, bool(content.get("do_center_crop", False)))


def read_preprocessing(name_or_path: str) -> dict[str, Any]:
    """Returns what `preprocessor_config.json` holds, put together for libraries that write no such file.

    open_clip says it in its config (CLIP's numbers where it does not), timm in ``pretrained_cfg`` of config.json.

    Args:
        name_or_path: folder of the encoder, or its name on the Hugging Face hub.

    Raises:
        XTunerError: none of the files is there.
    """
    from transformers import ImageProcessingMixin

    try:
        found = ImageProcessingMixin.get_image_processor_dict(name_or_path)[0]
    except (OSError, ValueError) as error:
        other = _of_open_clip(name_or_path) or _of_timm(name_or_path)
        if other is not None:
            return other
        raise XTunerError(
            f"the image preprocessing of '{name_or_path}' cannot be read: {reason_of(error)}; expected a folder with "
            "preprocessor_config.json (or open_clip's or timm's config), or a hub name and network access "
            "(visual_encoder_name_or_path, visual_encoder_aux_path)."
        ) from error
    if not isinstance(found, dict):
        raise XTunerError(f"the encoder '{name_or_path}' is a file: expected a folder as its library saves it.")
    return found


def _of_open_clip(name_or_path: str) -> dict[str, Any] | None:
    file = Path(name_or_path) / OPEN_CLIP_FILE
    if not file.is_file():
        return None
    said = read_json(file, dict).get("preprocess_cfg") or {}
    return _as_preprocessor(said.get("mean", CLIP_MEAN), said.get("std", CLIP_STD), crops=True)


def _of_timm(name_or_path: str) -> dict[str, Any] | None:
    from transformers import PretrainedConfig

    try:
        config: Mapping[str, Any] = PretrainedConfig.get_config_dict(name_or_path)[0]
    except (OSError, ValueError):
        return None
    said = config.get("pretrained_cfg") or {}
    if "mean" not in said or "std" not in said:
        return None
    return _as_preprocessor(said["mean"], said["std"], said.get("crop_mode", "center") == "center")


def _as_preprocessor(mean: Any, std: Any, crops: bool) -> dict[str, Any]:
    return {
        "do_center_crop": crops,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(mean),
        "image_std": list(std),
        "resample": _BICUBIC,
        "rescale_factor": 1 / 255,
    }


def _three_numbers(content: Mapping[str, Any], key: str, name: str) -> tuple[float, float, float]:
    value = content.get(key)
    if not (isinstance(value, (list, tuple)) and len(value) == 3):
        raise XTunerError(f"preprocessor_config.json of '{name}': {key}={value!r}, expected three numbers.")
    red, green, blue = map(float, value)
    return red, green, blue
