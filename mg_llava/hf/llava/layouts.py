"""What a LLaVA folder is: transformers' layout or that of LLaVA's own code, and its configs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, CLIPVisionConfig, PretrainedConfig

from mg_llava.hf.llava.names import Renaming, from_own_code, from_transformers
from mg_llava.pictures.encoder_config import read_encoder_config
from xtuner.errors import ProblemsError, XTunerError
from xtuner.json_values import read_json
from xtuner.model.meta import meta_init

_FETCH = "Fetch the folder again."
_OWN_KINDS = {"llava": "llama", "llava_llama": "llama", "llava_mistral": "mistral", "llava_qwen": "qwen2"}
"""``model_type`` of LLaVA's own code, and of the language model in it."""
_ARCHITECTURES = {"LlavaMistralForCausalLM": "mistral", "LlavaQwenForCausalLM": "qwen2"}
_EXPECTED = "llava (1.5) or llava_next (1.6) of transformers, or a LLaVA-1.5 or 1.6 of LLaVA's own code"
_CLIP = "clip_vision_model"
_LAYER = -2
_RENAMED_VALUES = ("rope_theta", "rope_scaling", "torch_dtype")
"""What transformers 5 reads under another name than it has."""


@dataclass(frozen=True)
class Layout:
    """What a folder's config.json says.

    Attributes:
        text_config: of the language model.
        vision_config: of CLIP, read at `tower` where the folder has none.
        tower: folder or hub name of CLIP, where the folder names one.
        rename: a weight's name there to the one here.
        own: of LLaVA's own code.
        is_1_6: LLaVA-1.6, whose base tile is the picture squeezed to a square, and which has other tiles.
    """

    text_config: PretrainedConfig
    vision_config: CLIPVisionConfig
    tower: str | None
    rename: Renaming
    own: bool
    is_1_6: bool


def read_layout(folder: Path, tower: str | None = None) -> Layout:
    """Reads a LLaVA folder's config.json.

    Args:
        folder: of transformers or of LLaVA's own code.
        tower: folder or hub name of CLIP, instead of the one that the folder names.

    Raises:
        ProblemsError: another version, or a part of another kind; all that is found.
        XTunerError: no config.json, or no CLIP where the folder says.
    """
    if not (folder / "config.json").is_file():
        adapters = "holds adapters alone and" if (folder / "adapter_config.json").is_file() else "has"
        raise XTunerError(f"'{folder}' {adapters} no config.json: expected a folder of {_EXPECTED}, on this disk.")
    config = read_json(folder / "config.json", dict, _FETCH)
    own = "vision_config" not in config and any(key.startswith("mm_") for key in config)
    layout, problems = _read_own(folder, config, tower) if own else _read_transformers(config, tower)
    if config.get("quantization_config"):
        problems.append("it is quantised (quantization_config): expected the weights as they were trained")
    if problems:
        raise ProblemsError(f"the LLaVA folder '{folder}'", problems)
    assert layout is not None
    return layout


def _read_transformers(config: Mapping[str, Any], tower: str | None) -> tuple[Layout | None, list[str]]:
    kind = config.get("model_type")
    if kind not in ("llava", "llava_next"):
        return None, [f"it is a model of type {kind!r}: expected {_EXPECTED}"]
    text, vision = config.get("text_config"), config.get("vision_config")
    if not isinstance(text, dict) or not isinstance(vision, dict):
        return None, ["config.json lacks text_config or vision_config. " + _FETCH]
    problems = []
    if tower is not None:
        problems.append(f"--vision-tower {tower}: the folder holds its CLIP, so leave the option out")
    if vision.get("model_type", _CLIP) != _CLIP:
        problems.append(f"vision_config is a {vision['model_type']!r}: expected CLIP ({_CLIP!r})")
    layer, layers = config.get("vision_feature_layer", _LAYER), vision.get("num_hidden_layers", 12)
    if layer != _LAYER and not (isinstance(layers, int) and layer == layers + 1 + _LAYER):
        problems.append(f"vision_feature_layer is {layer!r}: expected {_LAYER}, the layer that is read here")
    strategy = config.get("vision_feature_select_strategy", "default")
    if strategy != "default":
        problems.append(f"vision_feature_select_strategy is {strategy!r}: expected 'default' (no class token)")
    act, bias = config.get("projector_hidden_act", "gelu"), config.get("multimodal_projector_bias", True)
    if act != "gelu" or not bias:
        problems.append(
            f"the projector has {act!r} and {'a' if bias else 'no'} bias: expected Linear, GELU, Linear with a bias"
        )
    text_config, found = _sub_config("text_config", text.get("model_type", "llama"), text)
    vision_config, also = (None, []) if problems else _sub_config("vision_config", _CLIP, vision)
    problems += found + also
    if problems or text_config is None or not isinstance(vision_config, CLIPVisionConfig):
        return None, problems
    if config.get("tie_word_embeddings") and "tie_word_embeddings" not in text:
        text_config.tie_word_embeddings = True
    is_1_6 = kind == "llava_next"
    return Layout(text_config, vision_config, None, from_transformers, False, is_1_6), []


def _read_own(folder: Path, config: Mapping[str, Any], tower: str | None) -> tuple[Layout | None, list[str]]:
    kind = config.get("model_type")
    tower = tower or config.get("mm_vision_tower") or config.get("vision_tower")
    problems = []
    if kind not in _OWN_KINDS:
        problems.append(f"it is a model of type {kind!r}: expected {_EXPECTED}")
    for key, given, expected in (
        ("mm_projector_type", config.get("mm_projector_type", "linear"), "mlp2x_gelu"),
        ("mm_vision_select_layer", config.get("mm_vision_select_layer", _LAYER), _LAYER),
        ("mm_vision_select_feature", config.get("mm_vision_select_feature", "patch"), "patch"),
        ("mm_use_im_start_end", bool(config.get("mm_use_im_start_end", False)), False),
    ):
        if given != expected:
            problems.append(f"{key} is {given!r}: expected {expected!r}")
    if not tower:
        problems.append("mm_vision_tower is absent: name CLIP's folder by --vision-tower PATH")
    elif "clip" not in Path(tower).name.lower() and not (Path(tower) / "config.json").is_file():
        problems.append(f"mm_vision_tower is {tower!r}: expected a CLIP")
    architecture = next(iter(config.get("architectures") or ()), "")
    text_config, found = _sub_config(
        "language model", _ARCHITECTURES.get(architecture, _OWN_KINDS.get(str(kind), "llama")), config
    )
    problems += found
    if problems or text_config is None:
        return None, problems
    anyres = str(config.get("image_aspect_ratio", "")).startswith("anyres") or "image_grid_pinpoints" in config
    local = folder / str(tower)
    name = str(local) if local.is_dir() else str(tower)
    return Layout(text_config, _clip_config(name), name, from_own_code, True, anyres), []


def _sub_config(part: str, model_type: str, values: Mapping[str, Any]) -> tuple[PretrainedConfig | None, list[str]]:
    """A part's own config, without what LLaVA adds to it."""
    if model_type not in CONFIG_MAPPING:
        return None, [f"its {part} is of type {model_type!r}, which the installed transformers does not know"]
    known = AutoConfig.for_model(model_type).to_dict()
    own = {key: value for key, value in values.items() if key in known or key in _RENAMED_VALUES}
    for key in ("model_type", "architectures", "transformers_version", "_name_or_path"):
        own.pop(key, None)
    try:
        return AutoConfig.for_model(model_type, **own), []
    # transformers' checks of values raise errors of several kinds, by version
    except Exception as error:
        return None, [f"its {part} cannot be read: {' '.join(str(error).split())}"]


def _clip_config(tower: str) -> CLIPVisionConfig:
    # a published CLIP is described by the shipped file of its name
    with meta_init():
        found = read_encoder_config(tower)
    if found.family != _CLIP:
        raise XTunerError(f"the vision tower '{tower}' is of the family {found.family}: expected a CLIP.")
    return found.values
