"""A LLaVA folder to the parts of a config and a checkpoint of stage 1."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from mg_llava.hf.llava.layouts import Layout, read_layout
from mg_llava.hf.llava.weights import language_model_base, model_shapes, open_parts
from mg_llava.model.encoders import LowResEncoder
from mg_llava.pictures.statistics import CLIP_MEAN, CLIP_STD
from xtuner.errors import XTunerError
from xtuner.json_values import read_json
from xtuner.log import get_logger
from xtuner.model.files.checkpoints import save_file_atomic
from xtuner.model.files.frozen import Marks, mark_weights
from xtuner.model.files.shards import ShardWriter
from xtuner.model.files.weight_files import Weight
from xtuner.model.files.writing import disk_errors
from xtuner.model.meta import meta_init

CHECKPOINT = "stage1.pth"
_VOCABULARY = ("tokenizer.json", "tokenizer.model", "vocab.json")
_TOKENIZER = (
    *_VOCABULARY,
    *("merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "generation_config.json"),
)
"""Files that a language model needs beside its weights. LLaVA's chat template belongs to its processor."""
_OTHER_TILES = (
    "LLaVA-1.6's other tiles (anyres) and image_newline are not taken: the picture is its base tile. The "
    "high-resolution encoder and the objects take their place."
)
_NEW_PARTS = ("fusion", "object_encoder")
_CLIP_PARTS = "low_res_encoder.clip."


def from_llava(
    folder: str | Path, target: str | Path, base: str | None = None, vision_tower: str | None = None
) -> dict[str, str]:
    """Writes a LLaVA's language model and CLIP as folders of transformers, and its projector as a stage-1 checkpoint.

    Args:
        folder: LLaVA 1.5 or 1.6 in the layout of transformers or of LLaVA's own code.
        target: new or empty folder: ``llm``, ``clip`` (where the weights hold CLIP) and ``stage1.pth``.
        base: folder of the language model, for a LLaVA of adapters or of a projector alone.
        vision_tower: folder or hub name of CLIP, instead of the one that LLaVA's own code names.

    Returns:
        The settings with which a config continues it.

    Raises:
        XTunerError: another version of LLaVA, a folder that is not complete, a target with something in it, or a disk
            that is full.
    """
    folder, target = Path(folder), Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise XTunerError(f"'{target}' exists and is not empty: choose a new folder, nothing was overwritten.")
    layout = read_layout(folder, vision_tower)
    llm_base = language_model_base(folder, layout, base)
    weights = open_parts(folder, layout, llm_base)
    sources = [folder, *([llm_base] if llm_base else [])]
    if not any((place / name).is_file() for place in sources for name in _VOCABULARY):
        raise XTunerError(f"'{folder}' has no tokenizer ({', '.join(_VOCABULARY)}): fetch the whole folder.")
    if layout.is_1_6:
        get_logger().warning("%s: %s", folder, _OTHER_TILES)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    with disk_errors(target):
        try:
            has_clip = _write_parts(temporary, layout, weights, sources)
            settings = {
                "llm_name_or_path": str(target / "llm"),
                "visual_encoder_name_or_path": str(target / "clip") if has_clip else str(layout.tower),
                "pretrained_pth": str(target / CHECKPOINT),
            }
            if layout.is_1_6 and has_clip:
                settings["pad_image_to_square"] = "False"
            _write_checkpoint(temporary, layout, weights, settings, has_clip)
            if target.is_dir():
                target.rmdir()
            temporary.replace(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return settings


def _write_parts(folder: Path, layout: Layout, weights: Mapping[str, Weight], sources: Iterable[Path]) -> bool:
    """Writes both models; returns whether CLIP was among the weights."""
    _write_model(folder / "llm", layout.text_config, weights, "llm.")
    for name in _TOKENIZER:
        place = next((source / name for source in sources if (source / name).is_file()), None)
        if place is not None:
            shutil.copyfile(place, folder / "llm" / name)
    has_clip = any(name.startswith(_CLIP_PARTS) for name in weights)
    if has_clip:
        _write_model(folder / "clip", layout.vision_config, weights, _CLIP_PARTS)
        preprocessor = _preprocessor(next(iter(sources)), layout)
        text = json.dumps(preprocessor, indent=1) + "\n"
        (folder / "clip" / "preprocessor_config.json").write_text(text, encoding="utf-8")
    return has_clip


def _write_model(folder: Path, config: Any, weights: Mapping[str, Weight], prefix: str) -> None:
    folder.mkdir(parents=True)
    own = {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}
    writer = ShardWriter(folder, sum(_bytes(weight) for weight in own.values()))
    for name, weight in own.items():
        writer.add(name, weight.load())
    writer.finish()
    config.dtype = str(next(iter(own.values())).dtype).removeprefix("torch.")
    config.save_pretrained(folder)


def _bytes(weight: Weight) -> int:
    count = weight.dtype.itemsize
    for size in weight.shape:
        count *= size
    return count


def _preprocessor(folder: Path, layout: Layout) -> dict[str, Any]:
    """CLIP's preprocessor_config.json, with the statistics of the folder's own; 1.6 squeezes where CLIP crops."""
    image_size: Any = layout.vision_config.image_size
    found: dict[str, Any] = {}
    for name in ("processor_config.json", "preprocessor_config.json"):
        if (folder / name).is_file():
            content = read_json(folder / name, dict)
            found = content.get("image_processor", content) if "image_mean" not in content else content
        if isinstance(found, dict) and "image_mean" in found:
            break
    return {
        "image_processor_type": "CLIPImageProcessor",
        "crop_size": {"height": image_size, "width": image_size},
        "size": {"shortest_edge": image_size},
        "image_mean": found.get("image_mean", list(CLIP_MEAN)),
        "image_std": found.get("image_std", list(CLIP_STD)),
        "do_center_crop": not layout.is_1_6,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "resample": 3,
    }


def _write_checkpoint(
    folder: Path, layout: Layout, weights: Mapping[str, Weight], settings: Mapping[str, str], has_clip: bool
) -> None:
    """Writes the projector with marks of what it stands on, and names the parts that LLaVA has none of."""
    llm, _ = model_shapes(layout)
    with meta_init():
        low = LowResEncoder(layout.vision_config)
    marks = {"llm": _marks(llm, weights, "llm."), "low_res_encoder": None}
    if has_clip:
        marks["low_res_encoder"] = _marks(low, weights, "low_res_encoder.")
    places = {"llm": settings["llm_name_or_path"], "low_res_encoder": settings["visual_encoder_name_or_path"]}
    parts = {
        part: {
            "name": Path(place).name,
            "place": str(Path(place).resolve()) if has_clip or part == "llm" else place,
            "from_checkpoint": False,
            "marks": marks[part],
        }
        for part, place in places.items()
    }
    state = {name: weight.load() for name, weight in weights.items() if name.startswith("projector.")}
    base = {"checkpoint": None, "parts": parts, "new_parts": list(_NEW_PARTS)}
    save_file_atomic({"state_dict": state, "base": base}, folder / CHECKPOINT)


def _marks(module: nn.Module, weights: Mapping[str, Weight], prefix: str) -> Marks | None:
    """Marks of a part whose weights are read one after the other."""
    names = [f"{prefix}{name}".replace(".vision_model.", ".") for name, _ in module.named_parameters()]
    return mark_weights(weights[name].load() for name in names)
