"""One optimizer step over several micro-batches and ranks, weighed by supervised tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from xtuner.constants import IGNORE_INDEX
from xtuner.engine.processes.environment import Collective
from xtuner.engine.steps.settings import LossMean
from xtuner.errors import XTunerError

_ORDERED, _PARTITIONED = 2, 3

LOST = "lost"
"""The vote of a rank that has no micro-batches for a step: then no rank makes it."""


class TrainBackend(Protocol):
    """What a runner offers to the step: the plain one and DeepSpeed's differ only in these."""

    optimizer: Any
    device: torch.device

    @property
    def module(self) -> Any:
        """The model without wrappers: a `TrainableParts`."""
        ...

    @property
    def zero_stage(self) -> int:
        """DeepSpeed's ZeRO stage, 0 without. From 2 on gradients must come in one order on all ranks; at 3 all ranks
        must run the same modules, since they gather the weights of each together.
        """
        ...

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
        votes: how many ranks voted for each of the things that the ranks were asked about.
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
    votes: dict[str, int]
    by_source: torch.Tensor | None = None


def count_supervised(batch: Mapping[str, Any]) -> int:
    """Counts the labels (B, T) that a causal model predicts: all but ignored ones and the first column."""
    return int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())


def _real_positions(batch: Mapping[str, Any], micro_batch: Mapping[str, Any]) -> torch.Tensor:
    """Returns the mask (B, T) of what is no padding; all, where the model makes none."""
    mask = batch.get("attention_mask")
    return torch.ones_like(micro_batch["labels"]) if mask is None else mask


class StepGivenUpError(Exception):
    """A rank has no batches for this step, so that none makes it: the model is as it was before."""


def give_up_step(collective: Collective, votes: Mapping[str, bool], grad_accum: int) -> None:
    """Takes part in the exchange of a step that this rank has no micro-batches for, with the vote `LOST`.

    Args:
        collective, votes: as in `run_step`.
        grad_accum: micro-batches that the step would have.
    """
    collective.sum([0, 0, *map(float, {**votes, LOST: True}.values()), *[0.0] * grad_accum])


def run_step(
    backend: TrainBackend,
    micro_batches: Sequence[Mapping[str, Any]],
    collective: Collective,
    votes: Mapping[str, bool] | None = None,
    mean: LossMean = "step",
) -> StepResult:
    """Runs one optimizer step: the gradient is that of the mean loss over the supervised tokens of all ranks.

    The number of those tokens is known from the labels before any forward: each micro-batch's summed loss is
    weighed by ``world_size / tokens``, the world size undoing the mean that DDP and DeepSpeed take over
    ranks.

    Args:
        backend: plain or DeepSpeed.
        micro_batches: this rank's batches of the step, on the CPU, with ``labels`` (B, T).
        collective: exchange between ranks; one exchange per step carries everything.
        votes: yes or no of this rank to what the ranks decide together; the same names on every rank.
        mean: see `RuntimeSettings`; ``micro_batch`` weighs each micro-batch by its own tokens only.

    Raises:
        StepGivenUpError: a rank voted `LOST`.
    """
    votes = votes or {}
    supervised = [count_supervised(batch) for batch in micro_batches]
    samples = sum(len(batch["labels"]) for batch in micro_batches)
    has_rare = [backend.module.has_rare_inputs(batch) for batch in micro_batches]
    num_supervised, num_samples, *counts = collective.sum(
        [sum(supervised), samples, *map(float, votes.values()), *map(float, has_rare)]
    )
    voted = {name: round(count) for name, count in zip(votes, counts, strict=False)}
    if voted.get(LOST):
        raise StepGivenUpError
    ranks_with_rare = counts[len(votes) :]
    loss_count = num_supervised if mean == "step" else float(collective.world_size * len(micro_batches))
    weight = collective.world_size / max(1.0, loss_count)

    sums = _Sums(backend.device)
    for index, micro_batch in enumerate(micro_batches):
        batch = backend.prepare(micro_batch)
        if backend.zero_stage >= _ORDERED and not has_rare[index]:
            batch = backend.module.keep_in_step(batch, ranks_with_rare[index] > 0, backend.zero_stage == _PARTITIONED)
        share = 1.0 if mean == "step" else 1 / max(1, supervised[index])
        output = backend.accumulate(batch, weight * share, last=index == len(micro_batches) - 1)
        sums.add(output, share, _real_positions(batch, micro_batch))
    return StepResult(
        loss_sum=sums.loss,
        loss_count=loss_count,
        num_samples=num_samples,
        num_tokens=sums.tokens,
        num_positions=sums.positions,
        grad_norm=backend.update(),
        counted=sums.counted,
        expected=sum(supervised),
        votes=voted,
        by_source=sums.by_source,
    )


class _Sums:
    """What the micro-batches of a step add up to, on the device, so that nobody waits for it."""

    def __init__(self, device: torch.device) -> None:
        zero = torch.zeros((), device=device)
        self.loss, self.tokens, self.counted = zero.clone(), zero.clone(), zero.clone()
        self.positions = 0
        self.by_source: torch.Tensor | None = None

    def add(self, output: Mapping[str, torch.Tensor], share: float, mask: torch.Tensor) -> None:
        """Adds a micro-batch: the model's output, the weight of its loss, and the mask of what is no padding."""
        self.tokens += mask.sum()
        self.positions += mask.numel()
        self.loss += output["loss_sum"].detach() * share
        self.counted += output["num_supervised"]
        if "by_source" in output:
            each = output["by_source"]
            self.by_source = each if self.by_source is None else self.by_source + each


def check_counts(counted: float, expected: float) -> None:
    """Checks that the model trained on as many tokens as the labels have.

    Raises:
        XTunerError: the step was weighed wrongly, because the model's preprocessor added or dropped labels.
    """
    if counted != expected:
        raise XTunerError(
            f"The model reports {counted:.0f} supervised tokens, but the labels of the batches hold "
            f"{expected:.0f}: its data preprocessor must keep every label, and its 'num_supervised' must "
            "count the labels[:, 1:] that are not -100."
        )
