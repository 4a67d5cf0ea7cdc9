"""Training by plain torch: one process, or DDP."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from xtuner.engine.checkpoints.saving import to_host, write_file
from xtuner.engine.processes.environment import Environment
from xtuner.engine.steps.optim import StepOptimizer
from xtuner.engine.steps.precision import cast_parameters
from xtuner.errors import XTunerError
from xtuner.model.files.pickles import load_pickle


def wrap_plain(model: nn.Module, optimizer: StepOptimizer, environment: Environment) -> nn.Module:
    """Casts the parameters, moves the model to the device and, with several processes, wraps it in DDP."""
    cast_parameters(model, optimizer.precision)
    model = model.to(environment.device)
    if environment.world_size == 1:
        return model
    keep_gradient_layout(model)
    devices = [environment.device] if environment.device.type == "cuda" else None
    # renamed in torch 2.14
    named = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    own_buffers: dict[str, Any] = {"forward_sync_buffers" if named else "broadcast_buffers": False}
    return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True, **own_buffers)


def keep_gradient_layout(model: nn.Module) -> None:
    """Gives gradients the strides of their parameters, as the views of DDP's buckets have them.

    Autograd sees to that but for dimensions of size 1, whose stride means nothing and is whatever the kernel wrote,
    after a convolution in ``channels_last`` say. DDP compares all strides, and copies more slowly where one differs.
    """
    for parameter in model.parameters():
        if parameter.requires_grad and 1 in parameter.shape:
            parameter.register_hook(partial(_restride, parameter.stride()))


def _restride(strides: tuple[int, ...], gradient: torch.Tensor) -> torch.Tensor:
    told = zip(gradient.shape, gradient.stride(), strides, strict=True)
    same = all(size == 1 or found == wanted for size, found, wanted in told)
    return gradient.as_strided(gradient.shape, strides) if same else gradient


class PlainBackend:
    """What a step does without DeepSpeed; see `TrainBackend`.

    Args:
        model: as `wrap_plain` returned it.
        optimizer: over its trainable parameters.
        device: where it is.
    """

    zero_stage = 0
    """DDP's buckets are fixed and each rank has all weights: ranks may run different modules."""

    def __init__(self, model: nn.Module, optimizer: StepOptimizer, device: torch.device) -> None:
        self.model = model
        self.optimizer = optimizer
        self.device = device

    @property
    def module(self) -> Any:
        """The model itself."""
        return self.model.module if isinstance(self.model, DistributedDataParallel) else self.model

    def prepare(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Runs the model's data preprocessor."""
        return self.module.data_preprocessor(batch, True)

    def accumulate(self, batch: dict[str, Any], weight: float, last: bool) -> dict[str, torch.Tensor]:
        """Adds the gradients of ``weight * loss_sum``; ranks meet at the `last` micro-batch only."""
        alone = isinstance(self.model, DistributedDataParallel) and not last
        with self.model.no_sync() if alone else nullcontext():  # type: ignore[operator]
            with self.optimizer.precision.autocast(self.device):
                output = self.model(**batch, mode="loss")
            self.optimizer.backward(output["loss_sum"].float() * weight)
        return output

    def update(self) -> torch.Tensor:
        """Clips, updates and clears; returns the gradients' norm before clipping."""
        return self.optimizer.update()

    def evaluating(self) -> AbstractContextManager[Any]:
        """Returns the context in which the model generates: the number format that its training computes in."""
        return self.optimizer.precision.autocast(self.device)

    def stage(self, temporary: Path, trainer: dict[str, Any], copy: bool) -> Callable[[], None]:
        """Rank 0 writes the trained weights, the optimizer and `trainer` to one file; see `SavingBackend`."""
        if distributed.is_initialized() and distributed.get_rank() > 0:
            return lambda: None
        state = {
            "state_dict": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "trainer": trainer,
        }
        content = to_host(state) if copy else state
        return lambda: write_file(content, temporary)

    def seal(self, temporary: Path, trainer: dict[str, Any]) -> None:
        """Nothing is left to add to a single file."""

    def read_trainer(self, path: Path) -> dict[str, Any]:
        """Returns the `trainer` part of a checkpoint.

        Raises:
            XTunerError: it was made under DeepSpeed.
        """
        if path.is_dir():
            raise XTunerError(f"{path} was saved under DeepSpeed: resume it with the same --deepspeed setting.")
        return load_pickle(path, mapped=True)["trainer"]

    def load(self, path: Path) -> None:
        """Takes the trained weights and the optimizer's state from a checkpoint."""
        state = load_pickle(path)
        self.module.load_state_dict(state["state_dict"])
        self.optimizer.load_state_dict(state["optimizer"])
