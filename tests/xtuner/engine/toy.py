"""Model, data and config small enough to train in a test; tests of whole runs start it as a script."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from mmengine.config import ConfigDict
from torch import nn

from xtuner.constants import IGNORE_INDEX
from xtuner.data.batches.samplers import ShuffledBatchSampler
from xtuner.engine.steps.optim import build_optimizer
from xtuner.engine.steps.schedule import WarmupCosine
from xtuner.engine.steps.settings import RuntimeSettings
from xtuner.model.base import TrainableParts

VOCABULARY = 23


class ToyDataset:
    """Token sequences of 4 to 11 ids; a function of the index alone. `delay` seconds pass per sample."""

    def __init__(self, size: int = 40, delay: float = 0.0) -> None:
        self.size = size
        self.delay = delay
        self.lengths = [4 + (7 * i) % 8 for i in range(size)]

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        time.sleep(self.delay)
        generator = torch.Generator().manual_seed(index)
        ids = torch.randint(VOCABULARY, (self.lengths[index],), generator=generator)
        labels = ids.clone()
        labels[: 1 + index % 3] = IGNORE_INDEX
        return {"input_ids": ids, "labels": labels}

    def collate_fn(self, samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        pad = nn.utils.rnn.pad_sequence
        ids = pad([s["input_ids"] for s in samples], batch_first=True)
        labels = pad([s["labels"] for s in samples], batch_first=True, padding_value=IGNORE_INDEX)
        mask = pad([torch.ones(len(s["labels"]), dtype=torch.bool) for s in samples], batch_first=True)
        return {"input_ids": ids, "labels": labels, "attention_mask": mask}


class ToyModel(TrainableParts):
    """A frozen embedding and a trained head that predict the next token from a running sum."""

    part_names = ("embedding", "head")

    def __init__(self, dropout: float = 0.0, width: int = 16) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.head = nn.Sequential(
            nn.Linear(width, 32), nn.LayerNorm(32), nn.GELU(), nn.Dropout(dropout), nn.Linear(32, VOCABULARY)
        )
        self.set_trainable(("head",))

    def forward(
        self, input_ids: torch.Tensor, labels: torch.Tensor, attention_mask: torch.Tensor, mode: str
    ) -> dict[str, torch.Tensor]:
        assert mode == "loss"
        # running sums make every position depend on those before it
        states = self.embedding(input_ids).cumsum(1) / 4
        logits = self.head(states[:, :-1].to(self.head[0].weight.dtype)).float()
        loss = nn.functional.cross_entropy(
            logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
        )
        return {"loss_sum": loss, "num_supervised": (labels[:, 1:] != IGNORE_INDEX).sum()}


def toy_config(**changes: Any) -> ConfigDict:
    """A config with the nodes that the engine reads; `changes` name settings."""
    s = dict(
        batch_size=2, accumulative_counts=2, lr=1e-2, weight_decay=0.0, max_norm=1.0, precision="auto",
        max_epochs=2, max_iters=None, save_steps=3, save_total_limit=2, logging_interval=1, seed=7,
        dropout=0.0, workers=0, size=40, delay=0.0, width=16, visualizers=("tensorboard",),
        async_save=False, keep_best=None, max_skipped_steps=20, ema_decay=None, dataset=ToyDataset, model=ToyModel,
    )  # fmt: skip
    assert set(changes) <= set(s), set(changes) - set(s)
    s.update(changes)
    return ConfigDict(
        model=dict(type=s["model"], dropout=s["dropout"], width=s["width"]),
        train_dataset=dict(type=s["dataset"], size=s["size"], delay=s["delay"]),
        train_dataloader=dict(
            batch_size=s["batch_size"], num_workers=s["workers"], sampler=dict(type=ShuffledBatchSampler)
        ),
        optimizer=dict(
            type=build_optimizer, lr=s["lr"], weight_decay=s["weight_decay"], max_norm=s["max_norm"],
            accumulative_counts=s["accumulative_counts"], precision=s["precision"],
        ),
        schedule=dict(
            type=WarmupCosine, warmup_ratio=0.1, max_epochs=s["max_epochs"], max_iters=s["max_iters"]
        ),
        runtime=dict(
            type=RuntimeSettings, save_steps=s["save_steps"], save_total_limit=s["save_total_limit"],
            logging_interval=s["logging_interval"], seed=s["seed"], visualizers=s["visualizers"],
            async_save=s["async_save"], keep_best=s["keep_best"], max_skipped_steps=s["max_skipped_steps"],
            ema_decay=s["ema_decay"],
        ),
    )  # fmt: skip


def train_toy(
    work_dir: Path,
    deepspeed: str | None = None,
    resume: str | None = None,
    launcher: str | None = None,
    **changes: Any,
) -> Any:
    """Trains the toy in this process; returns the runner."""
    from xtuner.engine.assemble import assemble
    from xtuner.engine.processes.environment import setup_environment

    environment = setup_environment(launcher, always_group=deepspeed is not None)
    # mmengine keeps its loggers by name and second, and tests run several in one second
    runner = assemble(toy_config(**changes), work_dir.name, work_dir, environment, deepspeed, resume)
    runner.train()
    return runner


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("work_dir", type=Path)
    parser.add_argument("--resume")
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--workers", type=int, default=0)
    arguments = vars(parser.parse_args())
    trained = train_toy(**arguments, size=42)
    raise SystemExit(75 if trained.interrupted else 0)
