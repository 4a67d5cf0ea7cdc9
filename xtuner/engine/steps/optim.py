"""AdamW over the trainable parameters, with clipping and loss scaling, one update per optimizer step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from torch import nn

from xtuner.engine.steps.precision import Precision, resolve_precision
from xtuner.errors import XTunerError


class StepOptimizer(OptimWrapper):
    """An optimizer whose `step` is a whole optimizer step: unscale, clip, update, clear; the host never
    waits.

    Args:
        optimizer: over the trainable parameters.
        precision: fp16 adds a dynamic loss scale.
        max_norm: gradients are scaled down to this 2-norm; None or 0 leaves them alone (the norm is measured
            all the same).
        grad_accum: micro-batches per step; read by the runner, which knows how to weigh them.

    Attributes:
        optimizer, precision, max_norm, grad_accum: as given.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, precision: Precision, max_norm: float | None, grad_accum: int
    ) -> None:
        super().__init__(optimizer)
        self.precision = precision
        self.max_norm = max_norm
        self.grad_accum = grad_accum
        self.scaler = torch.amp.GradScaler("cuda", enabled=precision.scales_loss)
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])

    def backward(self, loss: torch.Tensor, **kwargs: Any) -> None:
        """Adds the gradients of `loss` to those there are."""
        self.scaler.scale(loss).backward(**kwargs)

    def step(self, **kwargs: Any) -> None:
        """Updates the parameters from the accumulated gradients and clears these."""
        self.update()

    def update(self) -> torch.Tensor:
        """Like `step`; returns the gradients' 2-norm before clipping, a scalar on the device.

        Where that norm is not finite nothing is updated.
        """
        self.scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        limit = self.max_norm or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
        if not self.scaler.is_enabled():
            # the fused kernel skips its update where this is 1, so that the host need not look
            self.optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def state_dict(self) -> dict[str, Any]:
        """Returns the optimizer's state and, for fp16, the loss scale's under ``scaler``."""
        return {**self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes what `state_dict` returned. A fp16 scale is only taken where there was one."""
        state = dict(state_dict)
        scaler = state.pop("scaler", {})
        if scaler and self.scaler.is_enabled():
            self.scaler.load_state_dict(scaler)
        self.optimizer.load_state_dict(state)


def set_learning_rate(optimizer: Any, factor: float) -> None:
    """Sets each parameter group of `optimizer` to `factor` times its peak rate (``initial_lr``)."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Sorts the trainable parameters of `model`: matrices decay, biases and norms (one dimension or none)
    never do.

    Raises:
        XTunerError: nothing is trainable.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not trainable:
        raise XTunerError("No parameter of the model is trainable: name at least one part in the model's 'trainable'.")
    if weight_decay == 0:
        return [{"params": trainable, "weight_decay": 0.0}]
    # ZeRO-3 leaves a partitioned parameter with one dimension and its true shape in ds_shape
    matrices = [p for p in trainable if len(getattr(p, "ds_shape", p.shape)) > 1]
    others = [p for p in trainable if len(getattr(p, "ds_shape", p.shape)) <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def build_adamw(
    model: nn.Module,
    device: torch.device,
    lr: float,
    betas: Sequence[float] = (0.9, 0.999),
    weight_decay: float = 0.0,
    max_norm: float | None = 1.0,
    accumulative_counts: int = 1,
    precision: str = "auto",
    cpu_offload: bool = False,
) -> StepOptimizer:
    """Builds AdamW over the trainable parameters of `model`, in its fused form: one kernel for all of them.

    Args:
        model: parameters with ``requires_grad`` are trained. Provided by the runner.
        device: where the model will train. Provided by the runner.
        lr: peak learning rate.
        betas: AdamW's two decay rates.
        weight_decay: on matrices only, never on biases and norms.
        max_norm: limit of the gradients' 2-norm; None or 0 for none.
        accumulative_counts: micro-batches per optimizer step and process.
        precision: ``auto``, ``bf16``, ``fp16`` or ``fp32``; see `resolve_precision`.
        cpu_offload: DeepSpeed keeps the optimizer in host memory. Provided by the runner.

    Raises:
        XTunerError: nothing to train, or a setting out of range.
    """
    if accumulative_counts < 1:
        raise XTunerError(f"accumulative_counts is {accumulative_counts}: expected 1 or more.")
    resolved = resolve_precision(precision, device)
    groups = parameter_groups(model, weight_decay)
    first, second = betas
    optimizer: torch.optim.Optimizer
    if cpu_offload and device.type == "cuda":
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        optimizer = DeepSpeedCPUAdam(groups, lr=lr, betas=(first, second), adamw_mode=True)
    else:
        optimizer = torch.optim.AdamW(groups, lr=lr, betas=(first, second), fused=True)
    return StepOptimizer(optimizer, resolved, max_norm, accumulative_counts)


build_adamw.provided_by_parent = ("model", "device", "cpu_offload")  # type: ignore[attr-defined]
