"""Optimizers by class: how one is built from a config's node, which can be sharded, and Muon for whole models."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel

from xtuner.engine.steps.groups import Group
from xtuner.errors import XTunerError
from xtuner.registry import resolve_type

_FUSED = (torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD)
_FORMS = ("fused", "foreach", "capturable", "differentiable")
_UNSUITED = {
    torch.optim.LBFGS: "runs the model several times a step",
    torch.optim.SparseAdam: "takes sparse gradients, of which a model here has none",
}
_NEEDS_GPU = "bitsandbytes"
_PROBE_STEPS = 2
_BETAS = 2


class Algorithm:
    """An optimizer's class with its arguments, before there are weights.

    Args:
        node: ``dict(type=Class, **arguments)`` without ``params``, ``lr`` and ``weight_decay``; None = AdamW.
        betas: of an Adam, unless the node has its own.

    Raises:
        XTunerError: the class is no optimizer that can take a step from gradients alone.
    """

    def __init__(self, node: Mapping[str, Any] | None = None, betas: Sequence[float] = (0.9, 0.999)) -> None:
        arguments = dict(node or {"type": torch.optim.AdamW})
        self.kind: Any = resolve_type(arguments.pop("type"))
        self.name: str = getattr(self.kind, "__name__", str(self.kind))
        if not (inspect.isclass(self.kind) and issubclass(self.kind, torch.optim.Optimizer)):
            raise XTunerError(
                f"optimizer_class is {self.name}: expected a class of torch.optim or one derived from it."
            )
        for kind, reason in _UNSUITED.items():
            if issubclass(self.kind, kind):
                raise XTunerError(f"optimizer_class is {self.name}, which {reason}: take another one.")
        takes = inspect.signature(self.kind).parameters
        if "betas" in takes and "betas" not in arguments:
            if len(betas) != _BETAS:
                raise XTunerError(f"betas is {list(betas)}: expected two numbers, e.g. betas=[0.9,0.999].")
            arguments["betas"] = tuple(betas)
        if self.kind in _FUSED and not any(form in arguments for form in _FORMS):
            # one kernel for all weights
            arguments["fused"] = True
        self.takes_decay = "weight_decay" in takes
        self.arguments = arguments

    @property
    def is_plain_adamw(self) -> bool:
        """True for AdamW as it is by default, for which DeepSpeed has one in host memory."""
        return self.kind is torch.optim.AdamW and set(self.arguments) <= {"betas", "eps", "fused"}

    def build(
        self, groups: Sequence[Group], model: nn.Module, device: torch.device, offloads: bool = False
    ) -> torch.optim.Optimizer:
        """Builds the optimizer over `groups`.

        Args:
            groups: of the model's trained weights.
            model: whose they are.
            device: where it trains.
            offloads: its state is in host memory, beside a GPU: AdamW is then DeepSpeed's own.

        Raises:
            XTunerError: an optimizer without its device, a setting that the class does not take, or that it refuses.
        """
        self.check_device(device)
        if not self.takes_decay and any(group.weight_decay for group in groups):
            raise XTunerError(f"{self.name} has no weight decay: set weight_decay=0, or take another optimizer_class.")
        arguments = {**self.arguments, "lr": groups[0].lr}
        if issubclass(self.kind, Muon):
            arguments["no_matrices"] = _no_matrices(model)
        params: list[dict[str, Any]] = [
            {
                "params": group.weights,
                "lr": group.lr,
                **({"weight_decay": group.weight_decay} if self.takes_decay else {}),
            }
            for group in groups
        ]
        if offloads and device.type == "cuda":
            if self.is_plain_adamw:
                from deepspeed.ops.adam import DeepSpeedCPUAdam

                arguments.pop("fused")
                return DeepSpeedCPUAdam(params, adamw_mode=True, **arguments)
            # the weights that it is built over are on the GPU, those that it will update are not
            arguments.pop("fused", None)
        try:
            return self.kind(params, **arguments)
        except (ValueError, TypeError) as error:
            raise XTunerError(f"optimizer_class: {self.name} refuses its arguments: {error}.") from error

    def check_device(self, device: torch.device) -> None:
        """Refuses an optimizer that needs a GPU where there is none.

        Raises:
            XTunerError: on another device.
        """
        if self.kind.__module__.partition(".")[0] == _NEEDS_GPU and device.type != "cuda":
            raise XTunerError(
                f"optimizer_class is {self.name} of {_NEEDS_GPU}, which keeps its 8-bit state on a GPU: this run is on "
                f"the {device.type}. Take torch.optim.AdamW."
            )

    def check_sharding(self, zero_stage: int, offloads: bool, device: torch.device) -> None:
        """Refuses an optimizer that DeepSpeed cannot spread over processes.

        Each process then updates a flat piece of the weights, which only does the same where every number is updated
        by itself. Whether it is, is tried on a small matrix and its two halves.

        Args:
            zero_stage: 1 to 3, or 0 without DeepSpeed.
            offloads: the optimizer's state is in host memory.
            device: where it trains.

        Raises:
            XTunerError: it cannot be sharded, or not be offloaded.
        """
        if not zero_stage or self.is_plain_adamw:
            return
        self.check_device(device)
        if offloads and self.kind.__module__.partition(".")[0] == _NEEDS_GPU:
            raise XTunerError(
                f"optimizer_class is {self.name}, which cannot be offloaded to host memory: take --deepspeed "
                f"deepspeed_zero{zero_stage}, or torch.optim.AdamW."
            )
        if not self._updates_each_number_alone(torch.device("cpu") if offloads else device):
            raise XTunerError(
                f"optimizer_class is {self.name}, which cannot be sharded by ZeRO stage {zero_stage}: each process "
                "updates a flat piece of the weights, and it needs whole matrices. Drop --deepspeed, or take "
                "torch.optim.AdamW."
            )

    def _updates_each_number_alone(self, device: torch.device) -> bool:
        generator = torch.Generator().manual_seed(0)
        start, *gradients = (torch.randn(4, 6, generator=generator).to(device) for _ in range(1 + _PROBE_STEPS))
        halves = [slice(0, 10), slice(10, 24)]
        wholes = [nn.Parameter(start.clone())]
        pieces = [nn.Parameter(start.flatten()[half].clone()) for half in halves]
        try:
            for weights in (wholes, pieces):
                optimizer = self.kind(weights, lr=0.01, **self.arguments)
                for gradient in gradients:
                    for index, weight in enumerate(weights):
                        weight.grad = (
                            gradient.clone() if weights is wholes else gradient.flatten()[halves[index]].clone()
                        )
                    optimizer.step()
        except (ValueError, RuntimeError, IndexError):
            return False
        return torch.allclose(torch.cat([piece.detach() for piece in pieces]), wholes[0].detach().flatten(), atol=1e-6)


def _no_matrices(model: nn.Module) -> set[int]:
    """Ids of the weights that have two dimensions and yet are no maps between features: embeddings and output heads."""
    found = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for module in model.modules():
        head = module.get_output_embeddings() if isinstance(module, PreTrainedModel) else None
        if head is not None:
            found.add(id(head.weight))
    return found


class Muon(torch.optim.Optimizer):
    """``torch.optim.Muon`` for the matrices of a model, and AdamW for all else, at the same rates.

    Muon (https://kellerjordan.github.io/posts/muon) makes a matrix's update orthogonal; embeddings, output heads,
    norms, biases and convolutions keep AdamW.

    Args:
        params: groups with ``lr`` and ``weight_decay``.
        lr: of groups without one.
        weight_decay: of groups without one; decoupled in both.
        momentum, nesterov, ns_steps: of Muon.
        betas, eps: of AdamW.
        adjust_lr_fn: how Muon scales the rate by a matrix's shape: ``match_rms_adamw`` (updates as large as AdamW's, so
            that one rate suits both) or ``original``.
        no_matrices: ids of weights with two dimensions for AdamW. Provided by the builder.

    Raises:
        XTunerError: this torch has no Muon.
    """

    provided_by_parent: ClassVar[tuple[str, ...]] = ("params", "lr", "weight_decay", "no_matrices")

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        betas: Sequence[float] = (0.9, 0.999),
        eps: float = 1e-8,
        adjust_lr_fn: str = "match_rms_adamw",
        no_matrices: set[int] | frozenset[int] = frozenset(),
    ) -> None:
        if not hasattr(torch.optim, "Muon"):
            raise XTunerError(f"torch {torch.__version__} has no Muon: install torch 2.9 or newer.")
        groups = [group if isinstance(group, dict) else {"params": [group]} for group in params]
        split = []
        for group in groups:
            weights = list(group["params"])
            matrices = [weight for weight in weights if weight.ndim == 2 and id(weight) not in no_matrices]
            others = [weight for weight in weights if weight.ndim != 2 or id(weight) in no_matrices]
            split += [{**group, "params": some, "muon": some is matrices} for some in (matrices, others) if some]
        super().__init__(split, {"lr": lr, "weight_decay": weight_decay})
        muon: dict[str, Any] = dict(momentum=momentum, nesterov=nesterov, ns_steps=ns_steps, adjust_lr_fn=adjust_lr_fn)
        self._inner: list[tuple[bool, torch.optim.Optimizer]] = []
        if any(group["muon"] for group in self.param_groups):
            mine = [group for group in self.param_groups if group["muon"]]
            self._inner.append((True, torch.optim.Muon(mine, lr=lr, weight_decay=weight_decay, **muon)))
        if not all(group["muon"] for group in self.param_groups):
            mine = [group for group in self.param_groups if not group["muon"]]
            first, second = betas
            inner = torch.optim.AdamW(
                mine, lr=lr, weight_decay=weight_decay, betas=(first, second), eps=eps, fused=True
            )
            self._inner.append((False, inner))

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Updates all weights that have a gradient."""
        for _, inner in self._inner:
            inner.step()

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of both, by name."""
        return {("muon" if is_muon else "adamw"): inner.state_dict() for is_muon, inner in self._inner}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes what `state_dict` returned."""
        for is_muon, inner in self._inner:
            inner.load_state_dict(state_dict["muon" if is_muon else "adamw"])
        # loading makes new groups: those of this optimizer are the same objects, in their own order
        left = {is_muon: iter(inner.param_groups) for is_muon, inner in self._inner}
        self.param_groups[:] = [next(left[group["muon"]]) for group in self.param_groups]
