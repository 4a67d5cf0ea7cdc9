"""Folders of image encoders without weights: only what the preprocessing reads."""

from __future__ import annotations

import json
from pathlib import Path

CLIP_PREPROCESSOR = Path(__file__).parent / "data" / "d_dataset" / "preprocessor_config.json"


def clip_folder(parent: Path) -> Path:
    """CLIP at 336 pixels, patches of 14."""
    folder = parent / "clip"
    folder.mkdir(exist_ok=True)
    (folder / "preprocessor_config.json").write_text(CLIP_PREPROCESSOR.read_text())
    config = {"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def siglip_folder(parent: Path) -> Path:
    """SigLIP at 384 pixels."""
    folder = parent / "siglip"
    folder.mkdir(exist_ok=True)
    half = [0.5, 0.5, 0.5]
    preprocessor = {"image_mean": half, "image_std": half, "size": {"height": 384, "width": 384}}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder
