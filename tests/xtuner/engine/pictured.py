"""The tiny model trained on samples with pictures, padded or packed, so that every step sees the same ones."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from mmengine.config import ConfigDict

from mg_llava.dataset import MGLLaVADataset
from tests.tiny_parts import NUM_IMAGE_TOKENS, tiny_batch, tiny_model
from tests.xtuner.engine.toy import toy_config

SAMPLES = 12
BOXES = 3
MAX_TOKENS = 3 * (16 + NUM_IMAGE_TOKENS - 1 + BOXES)
"""Three samples fill a row: of four of the shortest the last would not go in."""


class PicturedDataset:
    """Samples of 14 to 16 text tokens with a picture and three boxes; functions of the index alone."""

    source_names = ("one",)
    tokenizer = SimpleNamespace(pad_token_id=0)
    collate_fn = MGLLaVADataset.collate_fn

    def __init__(self) -> None:
        self.text = [14 + index % 3 for index in range(SAMPLES)]
        self.lengths = [text + NUM_IMAGE_TOKENS - 1 + BOXES for text in self.text]

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> dict[str, Any]:
        one = tiny_batch((self.text[index],), boxes=BOXES, seed=index)
        return {
            "sample_id": str(index),
            "input_ids": one["input_ids"][0],
            "labels": one["labels"][0],
            "pixel_values": one["pixel_values"],
            "boxes": one["boxes"],
            "bad_samples": [],
        }


def train_pictured(work_dir: Path, deepspeed: str | None, pack: bool, grad_accum: int) -> None:
    """Trains three steps, each over all samples, three in a micro-batch."""
    from xtuner.engine.assemble import assemble
    from xtuner.engine.environment import setup_environment

    environment = setup_environment(None, always_group=deepspeed is not None)
    cfg = toy_config(max_iters=3, batch_size=3, accumulative_counts=grad_accum)
    # written by each rank for itself
    parts = work_dir.with_name(f"{work_dir.name}_parts_{environment.rank}")
    cfg.model = ConfigDict(
        type=tiny_model, folder=parts, pack=pack, trainable=("fusion", "projector", "object_encoder", "llm")
    )
    cfg.train_dataset = ConfigDict(type=PicturedDataset)
    if pack:
        cfg.train_dataloader.sampler.max_tokens_per_batch = MAX_TOKENS
    torch.manual_seed(0)
    assemble(cfg, work_dir.name, work_dir, environment, deepspeed).train()
