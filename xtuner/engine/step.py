"""One optimizer step over several micro-batches and ranks, weighed by supervised tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from xtuner.constants import IGNORE_INDEX
from xtuner.engine.environment import Collective
from xtuner.engine.settings import LossMean
from xtuner.errors import XTunerError


class TrainBackend(Protocol):
    """What a runner offers to the step: the plain one and DeepSpeed's differ only in these."""

    optimizer: Any
    device: torch.device

    def prepare(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Runs the model's data preprocessor: a CPU batch in, keyword arguments on the device out."""
        ...

    def accumulate(self, batch: dict[str, Any], weight: float, last: bool) -> dict[str, torch.Tensor]:
        """Forward and backward of ``weight * loss_sum``, averaged over ranks; returns the model's output."""
        ...

    def update(self) -> torch.Tensor | float | None:
        """Clips, updates and clears; returns the gradients' norm before clipping."""
        ...


@dataclass
class StepResult:
    """What one optimizer step did. Tensors stay on the device, so that nobody waits for them.

    Attributes:
        loss_sum: summed token losses of this rank's micro-batches; with the mean over micro-batches, their mean losses.
        loss_count: what all ranks' `loss_sum` is divided by: supervised tokens, or micro-batches.
        num_samples: samples of all ranks.
        num_tokens: this rank's tokens that are no padding.
        num_positions: this rank's positions, padding included.
        grad_norm: the gradients' 2-norm before clipping.
        counted: supervised tokens of this rank as the model counted them.
        expected: the same as counted from the labels.
        stop: True when any rank was asked to stop.
        by_source: (2, K) this rank's summed token losses and supervised tokens of each of K sources; None where there
            is one.
    """

    loss_sum: torch.Tensor
    loss_count: float
    num_samples: float
    num_tokens: torch.Tensor
    num_positions: int
    grad_norm: torch.Tensor | float | None
    counted: torch.Tensor
    expected: int
    stop: bool
    by_source: torch.Tensor | None = None


def count_supervised(batch: Mapping[str, Any]) -> int:
    """Counts the labels (B, T) that a causal model predicts: all but ignored ones and the first column."""
    return int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())


def run_step(
    backend: TrainBackend,
    micro_batches: Sequence[Mapping[str, Any]],
    collective: Collective,
    stop: bool = False,
    mean: LossMean = "step",
) -> StepResult:
    """Runs one optimizer step: the gradient is that of the mean loss over the supervised tokens of all ranks.

    The number of those tokens is known from the labels before any forward: each micro-batch's summed loss is
    weighed by ``world_size / tokens``, the world size undoing the mean that DDP and DeepSpeed take over
    ranks.

    Args:
        backend: plain or DeepSpeed.
        micro_batches: this rank's batches of the step, on the CPU, with ``labels`` (B, T).
        collective: exchange between ranks.
        stop: this rank was asked to stop; travels with the token counts.
        mean: see `RuntimeSettings`; ``micro_batch`` weighs each micro-batch by its own tokens only.
    """
    counts = [count_supervised(batch) for batch in micro_batches]
    expected = sum(counts)
    samples = sum(len(batch["labels"]) for batch in micro_batches)
    num_supervised, num_samples, stops = collective.sum([expected, samples, float(stop)])
    loss_count = num_supervised if mean == "step" else float(collective.world_size * len(micro_batches))
    shares = [1.0 if mean == "step" else 1 / max(1, count) for count in counts]
    weight = collective.world_size / max(1.0, loss_count)

    zero = torch.zeros((), device=backend.device)
    loss_sum, num_tokens, counted = zero.clone(), zero.clone(), zero.clone()
    num_positions = 0
    by_source: torch.Tensor | None = None
    for index, (micro_batch, share) in enumerate(zip(micro_batches, shares, strict=True)):
        batch = backend.prepare(micro_batch)
        mask = batch.get("attention_mask")
        if mask is None:
            mask = micro_batch["labels"].new_ones(micro_batch["labels"].shape)
        num_tokens += mask.sum()
        num_positions += mask.numel()
        output = backend.accumulate(batch, weight * share, last=index == len(micro_batches) - 1)
        loss_sum += output["loss_sum"].detach() * share
        counted += output["num_supervised"]
        if "by_source" in output:
            by_source = output["by_source"] if by_source is None else by_source + output["by_source"]
    grad_norm = backend.update()
    return StepResult(
        loss_sum,
        loss_count,
        num_samples,
        num_tokens,
        num_positions,
        grad_norm,
        counted,
        expected,
        stops > 0,
        by_source,
    )


def check_counts(counted: float, expected: float) -> None:
    """Checks that the model trained on as many tokens as the labels have.

    Raises:
        XTunerError: the step was weighed wrongly, because the model's preprocessor added or dropped labels.
    """
    if counted != expected:
        raise XTunerError(
            f"The model reports {counted:.0f} supervised tokens where the batches' labels have "
            f"{expected:.0f}: its data preprocessor must keep every label, and its 'num_supervised' must "
            "count the labels[:, 1:] that are not -100."
        )
