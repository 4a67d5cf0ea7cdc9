"""Run by torchrun on two ranks: trains encoders by DDP and every ZeRO stage where one rank, or none, has pictures."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import ConfigDict

from mg_llava.model import MGLLaVA
from mg_llava.model.encoders import HighResEncoder, LowResEncoder
from mg_llava.model.fusion import ConvGateFusion
from mg_llava.model.objects import ObjectEncoder
from tests.tiny_parts import HIGH_SIZE, tiny_batch, tiny_llm
from tests.xtuner.engine.pictured import PicturedDataset
from tests.xtuner.engine.toy import toy_config
from xtuner.data.batches.samplers import ShuffledBatchSampler
from xtuner.model.projector import MLPProjector

CONNECTORS = ("projector", "object_encoder")
CASES: dict[str, dict[str, Any]] = {
    "whole": {"trainable": (*CONNECTORS, "fusion", "low_res_encoder", "high_res_encoder")},
    "some": {
        "trainable": (*CONNECTORS, "fusion", "low_res_encoder.layers.1-", r"high_res_encoder\.stages\.[23]", "llm"),
        "activation_checkpointing": True,
    },
    "objects": {"trainable": (*CONNECTORS, "high_res_encoder"), "fusion": None},
    "rates": {
        "trainable": (*CONNECTORS, "fusion", "low_res_encoder", "high_res_encoder.stages.2-", "llm"),
        "optimizer": {
            "lr": {"default": 1e-4, "projector": 5e-4, "low_res_encoder": 2e-5, "high_res_encoder.stages.3": 3e-5},
            "weight_decay": {"default": 0.1, "llm": 0.0},
            "layer_decay": {"low_res_encoder": 0.7},
        },
    },
}
"""Arguments of `train_towers`: of the model, and ``optimizer``."""
STRATEGIES = ("ddp", "zero1", "zero2", "zero3")
_PICTURED = (0, 1, 6, 7)
"""Samples with a picture: in step 1 those of rank 0, in step 2 those of rank 1, in step 3 of none."""


class SomePictures(PicturedDataset):
    """`PicturedDataset`, with text alone where `_PICTURED` says so."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = super().__getitem__(index)
        if index not in _PICTURED:
            text = tiny_batch((self.text[index],), (0,), seed=index)
            sample.update(input_ids=text["input_ids"][0], pixel_values=text["pixel_values"], boxes=text["boxes"])
        return sample


class InOrder(ShuffledBatchSampler):
    """The samples as they come: steps of four, of which each of two ranks has two."""

    def epoch_order(self, epoch: int) -> np.ndarray:
        return np.arange(len(self.lengths))


def model_node(parts: Path, **arguments: Any) -> dict[str, Any]:
    """The node of a tiny model whose parts are in the folder `parts`."""
    return dict(
        type=MGLLaVA,
        llm=dict(type=tiny_llm),
        low_res_encoder=dict(type=LowResEncoder, name_or_path=str(parts / "clip")),
        high_res_encoder=dict(
            type=HighResEncoder, path=str(parts / "convnext"), image_size=HIGH_SIZE, drop_path_rate=0.0
        ),
        **{"fusion": dict(type=ConvGateFusion), **arguments},
        projector=dict(type=MLPProjector),
        object_encoder=dict(type=ObjectEncoder),
    )


def train_towers(
    work_dir: Path,
    parts: Path,
    deepspeed: str | None,
    batch_size: int,
    resume: str | None = None,
    optimizer: dict[str, Any] | None = None,
    **arguments: Any,
) -> Any:
    """Trains three steps; returns the runner."""
    from xtuner.engine.assemble import assemble
    from xtuner.engine.processes.environment import setup_environment

    environment = setup_environment(None, always_group=deepspeed is not None)
    # a hundred times what is compared to: of a bias of keys the gradient is rounding alone, which AdamW scales up
    cfg = toy_config(
        max_iters=3,
        batch_size=batch_size,
        accumulative_counts=1,
        save_steps=1,
        save_total_limit=None,
        lr=1e-4,
        ema_decay=0.6,
    )
    cfg.model = ConfigDict(model_node(parts, **arguments))
    cfg.optimizer.update(optimizer or {})
    cfg.train_dataset = ConfigDict(type=SomePictures)
    cfg.train_dataloader.sampler.type = InOrder
    runner = assemble(cfg, work_dir.name, work_dir, environment, deepspeed, resume)
    runner.train()
    return runner


def main(folder: Path) -> None:
    """Leaves one run's folder per strategy and case below `folder`."""
    for strategy in STRATEGIES:
        deepspeed = None if strategy == "ddp" else f"deepspeed_{strategy}"
        for case, arguments in CASES.items():
            train_towers(folder / f"{strategy}_{case}", folder / "parts", deepspeed, 2, **arguments)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
