"""What a forward pass keeps for the backward pass, read off a pass of the part's shape alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from xtuner.model.layers import checkpointing_layers

_FLAGS = ("gradient_checkpointing", "grad_checkpointing")
Kept = dict[int, torch.Tensor]


def kept_bytes(part: nn.Module, inputs: torch.Tensor) -> int:
    """Returns the most bytes of activations that stand in memory between `part`'s forward pass and its gradients.

    Counted is every tensor that autograd keeps, once, without the weights. Layers that are recomputed (see
    `checkpoint_activations`) keep their input, and the largest of them all else while its turn lasts. Attention keeps
    no matrix, as with the kernels of a GPU, unless the part computes it itself.

    Args:
        part: on the meta device, in the compute format and in the mode of its training; only what is trained, and what
            lies behind it, keeps anything.
        inputs: of its forward pass.
    """
    kept = _kept(part, inputs)
    units = _units(part)
    if not units:
        return _bytes(kept)
    with _all_kept(part):
        return _bytes(kept) + max(map(_bytes, _kept_inside(part, inputs, units)), default=0)


def _kept(part: nn.Module, inputs: torch.Tensor) -> Kept:
    weights = {_key(weight) for weight in (*part.parameters(), *part.buffers())}
    kept: Kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if _key(tensor) not in weights:
            kept.setdefault(_key(tensor), tensor)
        return tensor

    with _NoMatrix(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        part(inputs)
    return kept


def _kept_inside(part: nn.Module, inputs: torch.Tensor, units: list[nn.Module]) -> list[Kept]:
    """What each of `units` keeps beside its input."""
    found: list[Kept] = []

    def enter(unit: nn.Module, given: tuple[Any, ...]) -> None:
        own: Kept = {}
        entry = {_key(one) for one in given if isinstance(one, torch.Tensor)}
        weights = {_key(weight) for weight in (*unit.parameters(), *unit.buffers())}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            if _key(tensor) not in weights | entry:
                own.setdefault(_key(tensor), tensor)
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        hooks.__enter__()
        running.append(hooks)
        found.append(own)

    def leave(*_: Any) -> None:
        running.pop().__exit__()

    running: list[Any] = []
    with ExitStack() as stack:
        for unit in units:
            stack.callback(unit.register_forward_pre_hook(enter).remove)
            stack.callback(unit.register_forward_hook(leave).remove)
        with _NoMatrix():
            part(inputs)
    return found


def _units(part: nn.Module) -> list[nn.Module]:
    """What is recomputed at a time: a layer of transformers, a block of a stage (or of a model) of timm."""
    units: dict[nn.Module, None] = dict.fromkeys(
        layer for layer in checkpointing_layers(part) if layer.gradient_checkpointing and layer.training
    )
    for module in part.modules():
        if getattr(module, "grad_checkpointing", None) is True:
            rows = [inner for inner in module.modules() if isinstance(inner, nn.Sequential)]
            units.update(dict.fromkeys(block for row in rows for block in row if not isinstance(block, nn.Sequential)))
    # the outermost: what stands in a block is a part of it
    inner = {below for unit in units for below in unit.modules() if below is not unit}
    return [unit for unit in units if unit not in inner]


def _key(tensor: torch.Tensor) -> int:
    """The same for all views of one piece of memory, as long as one of them lives."""
    return tensor.untyped_storage()._cdata


def _bytes(tensors: Kept) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors.values())


@contextmanager
def _all_kept(part: nn.Module) -> Iterator[None]:
    """Nothing is recomputed, so that every layer shows what it keeps."""
    modules = part.modules()
    found = [(module, flag, getattr(module, flag)) for module in modules for flag in _FLAGS if hasattr(module, flag)]
    for module, flag, _ in found:
        setattr(module, flag, False)
    try:
        yield
    finally:
        for module, flag, value in found:
            setattr(module, flag, value)


class _NoMatrix(TorchFunctionMode):
    """Attention as a GPU's kernels do it, which the meta device does not have."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs `func`; of scaled dot product attention only its shape."""
        if func is not nn.functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        given = {**dict(zip(("query", "key", "value"), args, strict=False)), **(kwargs or {})}
        return _Attention.apply(given["query"], given["key"], given["value"])


class _Attention(torch.autograd.Function):
    """Keeps query, key, value and the result."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Returns a tensor of the result's shape."""
        result = query.new_empty((*query.shape[:-1], value.shape[-1]))
        ctx.save_for_backward(query, key, value, result)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        """Is never called: only the forward pass is of interest."""
        raise NotImplementedError
