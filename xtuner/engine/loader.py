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
        dataset: with ``lengths`` (tokens per sample), ``collate_fn`` and, where samples fall into groups that
            should not meet in a batch, ``groups``.
        grad_accum: micro-batches of a rank per optimizer step.
        environment: this process.
        seed: of the order of samples.
    """
    sampler_node = node["sampler"]
    extra: dict[str, Any] = {}
    groups = getattr(dataset, "groups", None)
    if groups is not None and "groups" in getattr(resolve_type(sampler_node["type"]), "provided_by_parent", ()):
        extra["groups"] = groups
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
