"""The training data loader from a config's ``train_dataloader``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader

from xtuner.engine.environment import Environment
from xtuner.registry import build, resolve_type


def build_train_dataloader(
    node: Mapping[str, Any], dataset: Any, grad_accum: int, environment: Environment, seed: int
) -> DataLoader:
    """Builds the loader whose batch sampler yields this rank's micro-batches without end.

    Args:
        node: ``dict(batch_size=, num_workers=, sampler=dict(type=...))``.
        dataset: with ``lengths`` (tokens per sample), ``collate_fn`` and, where it has them, ``groups`` that should
            not meet in a batch, and ``source_of`` each sample and ``repeats`` of each source.
        grad_accum: micro-batches of a rank per optimizer step.
        environment: this process.
        seed: of the order of samples.
    """
    sampler_node = node["sampler"]
    taken = getattr(resolve_type(sampler_node["type"]), "provided_by_parent", ())
    known = {name: getattr(dataset, name, None) for name in ("groups", "source_of", "repeats") if name in taken}
    extra = {name: value for name, value in known.items() if value is not None}
    sampler = build(
        sampler_node,
        lengths=dataset.lengths,
        batch_size=node["batch_size"],
        grad_accum=grad_accum,
        rank=environment.rank,
        world_size=environment.world_size,
        seed=seed,
        **extra,
    )
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=node["num_workers"],
        collate_fn=dataset.collate_fn,
        pin_memory=environment.device.type == "cuda",
        # its own generator: the loader must not draw from the one that dropout uses
        generator=torch.Generator().manual_seed(seed + environment.rank),
    )
