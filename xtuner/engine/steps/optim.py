"""An optimizer over the trainable parameters, with clipping and loss scaling, one update per optimizer step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from torch import nn

from xtuner.engine.steps.algorithms import Algorithm
from xtuner.engine.steps.groups import DEFAULT, Group, Rates, parameter_groups
from xtuner.engine.steps.precision import Precision, resolve_precision
from xtuner.errors import XTunerError
from xtuner.log import get_logger

LAYER = ".layer_"
"""Between a label's entry of ``lr`` and the number of a layer that has a rate of its own."""

_KEPT = ("initial_lr", "weight_decay", "betas")
"""What a resumed run's config says of a group, whatever the checkpoint says."""


class StepOptimizer(OptimWrapper):
    """An optimizer whose `step` is a whole optimizer step: unscale, clip, update, clear.

    The host never waits with a fused optimizer, which skips an update without a finite gradient by itself; with
    another one it looks at each gradient's norm.

    Args:
        optimizer: over the trainable parameters.
        precision: fp16 adds a dynamic loss scale.
        max_norm: gradients are scaled down to this 2-norm; None or 0 leaves them alone (the norm is measured
            all the same).
        grad_accum: micro-batches per step; read by the runner, which knows how to weigh them.
        groups: that the optimizer was built over; None = what it has is one.
        algorithm: name of the optimizer's class.

    Attributes:
        optimizer, precision, max_norm, grad_accum, groups, algorithm: as given.
        labels: of each group of the optimizer, ``<entry of lr>`` or ``<entry>.layer_<number>``.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        precision: Precision,
        max_norm: float | None,
        grad_accum: int,
        groups: Sequence[Group] = (),
        algorithm: str = "AdamW",
    ) -> None:
        super().__init__(optimizer)
        self.precision = precision
        self.max_norm = max_norm
        self.grad_accum = grad_accum
        self.scaler = torch.amp.GradScaler("cuda", enabled=precision.scales_loss)
        self.groups = groups
        self.algorithm = algorithm
        label_of = {id(weight): _label(group) for group in groups for weight in group.weights}
        self.labels = [label_of.get(id(group["params"][0]), DEFAULT) for group in optimizer.param_groups]
        self._skips_itself = bool(optimizer.defaults.get("fused"))
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self._settings = [{key: group[key] for key in _KEPT if key in group} for group in optimizer.param_groups]

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
        finite = True
        if self._skips_itself and not self.scaler.is_enabled():
            # the fused kernel skips its update where this is 1, so that the host need not look
            self.optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
        elif not self.scaler.is_enabled():
            finite = bool(norm.isfinite())
        if finite:
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

    def rates(self) -> dict[str, float]:
        """Returns the learning rate of the running step by label; groups of one label have the same."""
        return {label: group["lr"] for label, group in zip(self.labels, self.optimizer.param_groups, strict=True)}

    def group_facts(self) -> list[list[str]]:
        """Returns the names of each group's weights: the order of what an optimizer saves."""
        return [list(group.names) for group in self.groups]

    def keep_settings(self) -> None:
        """Gives each group the config's settings again, where a checkpoint has brought others, and says so once."""
        changed = {}
        for label, group, settings in zip(self.labels, self.optimizer.param_groups, self._settings, strict=True):
            for key, value in settings.items():
                if key in group and group[key] != value and _as_tuple(group[key]) != _as_tuple(value):
                    changed[f"{key} of {label}"] = f"{group[key]} to {value}"
            group.update(settings)
        if changed:
            shown = ", ".join(f"{what} from {change}" for what, change in changed.items())
            get_logger().warning("The config changes what the checkpoint was trained with: %s.", shown)


def _as_tuple(value: Any) -> Any:
    """Returns a list as a tuple, anything else as it is."""
    return tuple(value) if isinstance(value, list) else value


def _label(group: Group) -> str:
    return group.label if group.layer is None else f"{group.label}{LAYER}{group.layer:02d}"


def set_learning_rate(optimizer: Any, factor: float) -> None:
    """Sets each parameter group of `optimizer` to `factor` times its peak rate (``initial_lr``)."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def build_optimizer(
    model: nn.Module,
    device: torch.device,
    lr: Rates,
    optimizer_class: Mapping[str, Any] | None = None,
    betas: Sequence[float] = (0.9, 0.999),
    weight_decay: Rates = 0.0,
    layer_decay: Mapping[str, float] | None = None,
    decay_norms_and_biases: bool = False,
    max_norm: float | None = 1.0,
    accumulative_counts: int = 1,
    precision: str = "auto",
    cpu_offload: bool = False,
    zero_stage: int = 0,
) -> StepOptimizer:
    """Builds an optimizer over the trainable parameters of `model`.

    Args:
        model: parameters with ``requires_grad`` are trained. Provided by the runner.
        device: where the model will train. Provided by the runner.
        lr: peak learning rate; a number, or by part and pattern: see `parameter_groups`.
        optimizer_class: node of a class derived from ``torch.optim.Optimizer``, without rates and weight decay;
            None = AdamW. AdamW, Adam and SGD are fused (one kernel for all weights) unless the node says otherwise.
        betas: decay rates of an optimizer that has some.
        weight_decay: like `lr`.
        layer_decay, decay_norms_and_biases: see `parameter_groups`.
        max_norm: limit of the gradients' 2-norm; None or 0 for none.
        accumulative_counts: micro-batches per optimizer step and process.
        precision: ``auto``, ``bf16``, ``fp16`` or ``fp32``; see `resolve_precision`.
        cpu_offload: DeepSpeed keeps the optimizer in host memory. Provided by the runner.
        zero_stage: DeepSpeed's, 0 without. Provided by the runner.

    Raises:
        XTunerError: nothing to train, a setting out of range or for what is not trained, or an optimizer that does not
            suit device or ZeRO stage.
    """
    if accumulative_counts < 1:
        raise XTunerError(f"accumulative_counts is {accumulative_counts}: expected 1 or more.")
    resolved = resolve_precision(precision, device)
    algorithm = Algorithm(optimizer_class, betas)
    algorithm.check_sharding(zero_stage, cpu_offload, device)
    groups = parameter_groups(model, lr, weight_decay, layer_decay, decay_norms_and_biases)
    optimizer = algorithm.build(groups, model, device, cpu_offload)
    return StepOptimizer(optimizer, resolved, max_norm, accumulative_counts, groups, algorithm.name)


def check_optimizer(node: Mapping[str, Any], device: torch.device, zero_stage: int, offloads: bool) -> None:
    """Checks that the optimizer of a config's node suits device and ZeRO stage, without a model.

    Args:
        node: of `build_optimizer`.
        device, zero_stage, offloads: see there.

    Raises:
        XTunerError: see there.
    """
    algorithm = Algorithm(node.get("optimizer_class"), node.get("betas", (0.9, 0.999)))
    algorithm.check_device(device)
    algorithm.check_sharding(zero_stage, offloads, device)


def check_rates(node: Mapping[str, Any], model: nn.Module) -> None:
    """Checks that the rates of a config's node suit a model, whose weights may be on the device ``meta``.

    Raises:
        XTunerError: see `parameter_groups`.
    """
    names = ("lr", "weight_decay", "layer_decay", "decay_norms_and_biases")
    parameter_groups(model, **{name: node[name] for name in names if name in node})


build_optimizer.provided_by_parent = ("model", "device", "cpu_offload", "zero_stage")  # type: ignore[attr-defined]
