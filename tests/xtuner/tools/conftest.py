"""A trained tiny model behind a shipped config, for the commands that use one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.tiny_assistant import box_record, save_picture, tiny_model_node
from xtuner.registry import build


@dataclass(frozen=True)
class Trained:
    """What a user has after training: a config with its settings, a checkpoint, a picture with boxes."""

    folder: Path
    config: str
    options: list[str]
    checkpoint: Path
    picture: Path
    box_file: Path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    node = tiny_model_node(folder / "parts")
    model = build(node, trainable=("fusion", "projector", "object_encoder", "llm"))
    torch.save({"state_dict": model.state_dict()}, folder / "iter_3.pth")
    picture = save_picture(folder / "eval" / "coco" / "val2014" / "a.png")
    (folder / "boxes").mkdir()
    (folder / "boxes" / "pope.json").write_text(json.dumps([box_record("a.png")]))
    (folder / "eval" / "pope").mkdir()
    for negatives in ("random", "popular", "adversarial"):
        rows = [{"question_id": n, "image": "a.png", "text": "Is it red", "label": "yes"} for n in range(2)]
        path = folder / "eval" / "pope" / f"coco_pope_{negatives}.json"
        path.write_text("\n".join(map(json.dumps, rows)))
    options = {
        "llm_name_or_path": folder / "parts" / "llm",
        "visual_encoder_name_or_path": folder / "parts" / "clip",
        "visual_encoder_aux_path": folder / "parts" / "convnext",
        "image_size_aux": 64,
        "precision": "fp32",
        "prompt_template": "vicuna",
        "dataloader_num_workers": 0,
        "benchmark_folder": folder / "eval",
        "benchmark_box_folder": folder / "boxes",
    }
    return Trained(
        folder=folder,
        config="fuse_phi3_clip_L_14_336_sft_padding",
        options=["--cfg-options", *(f"{key}={value}" for key, value in options.items())],
        checkpoint=folder / "iter_3.pth",
        picture=picture,
        box_file=folder / "boxes" / "pope.json",
    )
