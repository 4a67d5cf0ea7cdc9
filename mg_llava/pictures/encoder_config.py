"""What an image encoder's folder says of its family and its tokens, read without its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from mg_llava.pictures.frames import FrameSize, frame_size, sides
from mg_llava.pictures.statistics import OPEN_CLIP_FILE
from xtuner.errors import XTunerError, reason_of
from xtuner.json_values import read_json
from xtuner.model.meta import architecture_file, in_meta_init

LOW, HIGH = "low-resolution", "high-resolution"
"""What an encoder is for."""
TIMM = "timm"
_OWN_FAMILY = "mg_llava"
"""``model_type`` of exported folders, whose low-resolution encoder is described in their config."""
OPEN_CLIP = "open_clip"


@dataclass(frozen=True)
class EncoderConfig:
    """Content of an encoder's config, with the family that it is of.

    Attributes:
        family: ``model_type`` of transformers (of the vision part, where a folder holds text too), ``timm`` or
            ``open_clip``.
        values: transformers' config, or the file's content where it is another library's.
        source: folder or hub name; empty where only the config is there.
    """

    family: str
    values: Any
    source: str = ""

    @property
    def described(self) -> str:
        """Names the folder and its family in a message."""
        kind = f"timm's {self.values.get('architecture')}" if self.family == TIMM else self.family
        return f"'{self.source}' is of the family {kind}" if self.source else f"the encoder is of the family {kind}"

    def get(self, name: str, default: Any = None) -> Any:
        """Returns a value of the config by its name."""
        values = self.values
        return values.get(name, default) if isinstance(values, Mapping) else getattr(values, name, default)


def read_encoder_config(
    source: str | Path | PretrainedConfig | Mapping[str, Any] | EncoderConfig, role: str = LOW
) -> EncoderConfig:
    """Reads the config of an image encoder.

    Args:
        source: folder or hub name; a config that is read already is taken as it is. Under `meta_init` a name is
            described by the shipped file, where there is one.
        role: `LOW` or `HIGH`: a folder with several libraries' configs is open_clip's as a
            high-resolution encoder, transformers' or timm's as a low-resolution one.

    Raises:
        XTunerError: no config is found, or it says no family.
    """
    if isinstance(source, EncoderConfig):
        return source
    if isinstance(source, PretrainedConfig):
        return EncoderConfig(source.model_type, source, str(source.name_or_path))
    if isinstance(source, Mapping):
        return _of_values(dict(source), "", role)
    name = str(source)
    config_file, open_clip = Path(name) / "config.json", Path(name) / OPEN_CLIP_FILE
    if in_meta_init() and not config_file.is_file() and not open_clip.is_file():
        shipped = architecture_file(name)
        if shipped is not None:
            return _of_values(read_json(shipped, dict), name, role)
        named = _named_open_clip_config(name)
        if named is not None:
            return EncoderConfig(OPEN_CLIP, named, name)
    if open_clip.is_file() and (role == HIGH or not config_file.is_file()):
        return EncoderConfig(OPEN_CLIP, read_json(open_clip, dict), name)
    try:
        values = PretrainedConfig.get_config_dict(name)[0]
    except (OSError, ValueError) as error:
        raise XTunerError(
            f"the {role} encoder '{name}' cannot be read: {reason_of(error)}; give a folder with config.json"
            f"{' or ' + OPEN_CLIP_FILE if role == HIGH else ''}, or a hub name and network access "
            f"({'visual_encoder_aux_path' if role == HIGH else 'visual_encoder_name_or_path'})."
        ) from error
    if not isinstance(values, dict):
        raise XTunerError(f"the {role} encoder '{name}' is a file: expected a folder as its library saves it.")
    return _of_values(values, name, role)


def _named_open_clip_config(name: str) -> dict[str, Any] | None:
    """Returns the config of the open_clip architecture that the name of an absent folder holds."""
    if name.startswith("timm/"):
        # timm's own on the Hub have the same architectures' names
        return None
    # imported late: open_clip takes seconds, and only descriptions of absent folders need it
    from open_clip.factory import get_model_config, list_models

    names = [known for known in list_models() if known in Path(name).name]
    return get_model_config(max(names, key=len)) if names else None


def _of_values(values: dict[str, Any], source: str, role: str) -> EncoderConfig:
    if "vision_cfg" in values or "model_cfg" in values:
        return EncoderConfig(OPEN_CLIP, values, source)
    if "architecture" in values:
        # transformers names its wrapper of timm's models when it reads the file
        values.pop("model_type", None)
        return EncoderConfig(TIMM, values, source)
    kind = values.get("model_type")
    if not isinstance(kind, str):
        lacks = f"{OPEN_CLIP_FILE} and no config.json" if role == HIGH else "config.json"
        raise XTunerError(
            f"the {role} encoder '{source}' has no {lacks} that names a model_type (transformers) or an architecture "
            "(timm): give a folder as one of these libraries publishes it, with its weights beside it."
        )
    if kind == _OWN_FAMILY and isinstance(values.get("vision_config"), Mapping):
        return _of_values(dict(values["vision_config"]), source, role)
    config = _transformers_config(kind, values)
    # what transformers does not know is left to whoever looks for its class
    if config is None:
        return EncoderConfig(kind, values, source)
    config.name_or_path = source
    return EncoderConfig(config.model_type, config, source)


def _transformers_config(kind: str, values: dict[str, Any]) -> PretrainedConfig | None:
    """Returns the config of a model, of its vision part where it has one of a fixed kind."""
    from transformers import CONFIG_MAPPING

    if kind not in CONFIG_MAPPING:
        return None
    config_class = CONFIG_MAPPING[kind]
    vision = config_class.sub_configs.get("vision_config")
    if vision is not None and hasattr(vision, "model_type") and isinstance(values.get("vision_config"), Mapping):
        config_class, values = vision, dict(values["vision_config"])
    return config_class.from_dict(values)


def token_grid(config: EncoderConfig, image_size: FrameSize | None = None) -> tuple[FrameSize, tuple[int, int]]:
    """Returns the size of a vision transformer's pictures in pixels, and the (h, w) of its tokens.

    Args:
        config: of the encoder.
        image_size: side of the pictures, or (height, width), where it is not the config's own.

    Raises:
        XTunerError: no vision transformer, or pictures smaller than a patch.
    """
    if config.family == TIMM:
        own, patch = _timm_patches(config)
    else:
        patch = config.get("patch_size")
        own = config.get("image_size")
        if own is None and isinstance(config.get("num_patches"), int) and isinstance(patch, int):
            own = isqrt(config.get("num_patches")) * patch
    # of a network of stages the patch is that of its first one
    if not (isinstance(own, int) and isinstance(patch, int)) or config.get("depths"):
        raise XTunerError(
            f"{config.described}: expected a vision transformer for square pictures, found image_size={own}, "
            f"patch_size={patch}: name one as visual_encoder_name_or_path; a network of stages (ConvNeXt, Swin, ...) "
            "belongs to visual_encoder_aux_path."
        )
    size = own if image_size is None else frame_size(image_size)
    height, width = sides(size)
    if min(height, width) < patch:
        raise XTunerError(
            f"the low-resolution picture is {min(height, width)} px wide, less than a patch of {patch} px: choose a "
            "multiple of it (setting visual_encoder_image_size)."
        )
    return size, (height // patch, width // patch)


def _timm_patches(config: EncoderConfig) -> tuple[Any, Any]:
    import torch

    with torch.device("meta"):
        model = create_timm(config, num_classes=0)
    patches = getattr(model, "patch_embed", None) if hasattr(model, "blocks") else None
    return _side(getattr(patches, "img_size", None)), _side(getattr(patches, "patch_size", None))


def create_timm(config: EncoderConfig, **arguments: Any) -> Any:
    """Builds the model that a timm folder's config.json names, without weights.

    Args:
        config: of the folder.
        arguments: of ``timm.create_model``.

    Raises:
        XTunerError: the installed timm does not know the model, or cannot build it with these arguments.
    """
    import timm

    try:
        # copied: timm writes into its arguments
        extra = dict(config.get("model_args") or {})
        return timm.create_model(config.get("architecture"), **{"pretrained": False, **extra, **arguments})
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise XTunerError(
            f"{config.described}, which the installed timm {timm.__version__} cannot build as asked for: {error}"
        ) from error


def _side(value: Any) -> Any:
    """Returns a square's side."""
    return value[0] if isinstance(value, (tuple, list)) and len(set(value)) == 1 else value


def read_token_grid(name_or_path: str, image_size: FrameSize | None = None) -> tuple[int, int]:
    """Returns (rows, columns) of the tokens that a low-resolution encoder makes of a picture, from its config.

    Args:
        name_or_path: folder or hub name.
        image_size: see `token_grid`.

    Raises:
        XTunerError: the config cannot be read.
    """
    return token_grid(read_encoder_config(name_or_path), image_size)[1]
