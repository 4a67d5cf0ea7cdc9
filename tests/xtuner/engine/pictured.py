"""The tiny model trained on samples with pictures, padded or packed, so that every step sees the same ones."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mmengine.config import ConfigDict

from mg_llava.data.samples import SampleReader
from mg_llava.model import MGLLaVA
from mg_llava.model.encoders import HighResEncoder, LowResEncoder
from mg_llava.model.fusion import ConvGateFusion
from mg_llava.model.objects import ObjectEncoder
from mg_llava.pictures.pooling import ImageTokens
from tests.tiny_assistant import tiny_model_node
from tests.tiny_parts import HIGH_SIZE, NUM_IMAGE_TOKENS, tiny_batch, tiny_llm
from tests.xtuner.engine.toy import toy_config
from xtuner.model.projector import MLPProjector

SAMPLES = 12
BOXES = 3
MAX_TOKENS = 3 * (16 + NUM_IMAGE_TOKENS - 1 + BOXES)
"""Three samples fill a row: of four of the shortest the last would not go in."""


class PicturedDataset:
    """Samples of 14 to 16 text tokens with a picture and three boxes; functions of the index alone."""

    source_names = ("one",)
    num_sources = 1
    maker = SimpleNamespace(tokenizer=SimpleNamespace(pad_token_id=0))
    image_processor = SimpleNamespace(image_tokens=ImageTokens(NUM_IMAGE_TOKENS, NUM_IMAGE_TOKENS))
    collate_fn = SampleReader.collate

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


def make_parts(folder: Path) -> None:
    """Writes encoders, language model and tokenizer; not on the ranks, where transformers lets the first one alone
    write.
    """
    tiny_model_node(folder)


def train_pictured(
    work_dir: Path, parts: Path, deepspeed: str | None, pack: bool, grad_accum: int, precision: str = "auto"
) -> None:
    """Trains three steps, each over all samples, three in a micro-batch."""
    from xtuner.engine.assemble import assemble
    from xtuner.engine.processes.environment import setup_environment

    environment = setup_environment(None, always_group=deepspeed is not None)
    cfg = toy_config(max_iters=3, batch_size=3, accumulative_counts=grad_accum, precision=precision)
    cfg.model = ConfigDict(
        type=MGLLaVA,
        llm=dict(type=tiny_llm),
        low_res_encoder=dict(type=LowResEncoder, name_or_path=str(parts / "clip")),
        high_res_encoder=dict(type=HighResEncoder, path=str(parts / "convnext"), image_size=HIGH_SIZE),
        fusion=dict(type=ConvGateFusion),
        projector=dict(type=MLPProjector),
        object_encoder=dict(type=ObjectEncoder),
        trainable=("fusion", "projector", "object_encoder", "llm"),
        pack=pack,
    )
    cfg.train_dataset = ConfigDict(type=PicturedDataset)
    if pack:
        cfg.train_dataloader.sampler.max_tokens_per_batch = MAX_TOKENS
    assemble(cfg, work_dir.name, work_dir, environment, deepspeed).train()
