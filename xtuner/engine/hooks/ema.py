"""An average of the trained weights over the steps (exponential moving average, EMA), beside the checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import distributed

from xtuner.engine.hooks.save import SaveHook
from xtuner.errors import XTunerError
from xtuner.log import get_logger
from xtuner.model.files.checkpoints import save_file_atomic
from xtuner.model.files.weight_files import read_state_dict

_FOLDER = "ema"
_WARMUP = 10
_SPLIT_WEIGHTS = 3
"""The ZeRO stage in which each rank holds a piece of every weight."""


class EmaHook(SaveHook):
    """Averages the trained weights and saves the average where the run saves, as ``ema/iter_<step>.pth``.

    After step n the average moves by ``1 - min(decay, (1 + n) / (10 + n))`` of the way to the weights, in float32: at
    first it follows them closely. Its files are checkpoints of the model's weights like any other: evaluate or export
    them. A resumed run goes on with the average of the checkpoint's step.

    Under DDP and ZeRO-1/2, where every rank has all weights, rank 0 alone averages; under ZeRO-3 each rank averages its
    piece. DeepSpeed's weights are averaged in the format that they compute in.

    Args:
        interval: optimizer steps between checkpoints.
        decay: share of the former average that a step keeps, below 1.
    """

    priority = "LOW"

    def __init__(self, interval: int, decay: float) -> None:
        super().__init__(interval)
        self.decay = decay
        self._weights: dict[str, torch.Tensor] = {}
        self._averages: dict[str, torch.Tensor] = {}

    def before_train(self, runner: Any) -> None:
        """Starts from the weights, or from the average that belongs to the checkpoint resumed from."""
        super().before_train(runner)
        trained = {name: weight for name, weight in runner.module.named_parameters() if weight.requires_grad}
        averages_here = runner.collective.rank == 0 or runner.backend.zero_stage == _SPLIT_WEIGHTS
        self._weights = trained if averages_here else {}
        self._averages = {name: _piece(weight).detach().float().clone() for name, weight in self._weights.items()}
        if runner.plan.resume is not None:
            self._resume(runner.plan.resume)

    @torch.no_grad()
    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Moves the average; saves where the run does."""
        step = runner.iter + 1
        keep = min(self.decay, (1 + step) / (_WARMUP + step))
        if self._averages:
            weights = [_piece(weight).detach().float() for weight in self._weights.values()]
            torch._foreach_lerp_(list(self._averages.values()), weights, 1 - keep)
        super().after_train_iter(runner, batch_idx, data_batch, outputs)

    def after_train(self, runner: Any) -> None:
        """Saves what a request to stop left unsaved."""
        if self.saved != runner.iter:
            self.save(runner, runner.iter)

    def save(self, runner: Any, step: int) -> None:
        """Writes the average; takes away the files of checkpoints that are gone. Called on all ranks."""
        base = runner.base()
        averages = {name: _gathered(self._weights[name], average) for name, average in self._averages.items()}
        self.saved = step
        if runner.collective.rank:
            return
        own = dict(runner.module.named_parameters(remove_duplicate=False))
        by_weight = {id(own[name]): average for name, average in averages.items()}
        state = {
            name: by_weight.get(id(own.get(name)), value).detach().cpu()
            for name, value in runner.module.state_dict().items()
        }
        folder = runner.plan.work_dir / _FOLDER
        path = folder / runner.checkpoints.path(step).name
        try:
            save_file_atomic({"state_dict": state, "trainer": {"iter": step, "base": base}}, path)
        except XTunerError as error:
            get_logger().error("The averaged weights of step %d are not saved: %s. Training continues.", step, error)
        for file in folder.glob("iter_*.pth"):
            if file != path and not (runner.plan.work_dir / file.name).exists():
                file.unlink()

    def _resume(self, checkpoint: Path) -> None:
        path = checkpoint.parent / _FOLDER / checkpoint.name
        if not path.is_file():
            get_logger().warning(
                "%s is not there: the average of the weights starts from those of %s.", path, checkpoint
            )
            return
        state = read_state_dict(path)
        for name, average in self._averages.items():
            average.copy_(_own_piece(self._weights[name], state[name]))


def _piece(weight: torch.Tensor) -> torch.Tensor:
    """What this rank holds of a weight: all, or under ZeRO-3 a flat piece."""
    return getattr(weight, "ds_tensor", weight)


def _gathered(weight: torch.Tensor, average: torch.Tensor) -> torch.Tensor:
    """Returns the whole of an average from all ranks' pieces."""
    if not hasattr(weight, "ds_tensor"):
        return average
    if distributed.get_backend() == "nccl":
        # offloaded weights are in host memory, from where it sends nothing
        average = average.cuda()
    pieces = [torch.empty_like(average) for _ in range(distributed.get_world_size())]
    distributed.all_gather(pieces, average)
    # the last piece is filled up with anything
    return torch.cat(pieces)[: weight.ds_numel].view(weight.ds_shape)  # type: ignore[attr-defined]


def _own_piece(weight: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """Returns this rank's piece of an average."""
    if not hasattr(weight, "ds_tensor"):
        return whole
    length = weight.ds_tensor.numel()
    filled = torch.zeros(length * distributed.get_world_size())
    filled[: whole.numel()] = whole.flatten()
    return filled.narrow(0, length * distributed.get_rank(), length).view_as(weight.ds_tensor)
