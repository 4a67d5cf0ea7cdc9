"""Settings of a part's layers: which are computed again in the backward pass, which are compiled, which do nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from xtuner.errors import XTunerError


def checkpointing_layers(part: nn.Module) -> list[GradientCheckpointingLayer]:
    """Returns the layers of transformers' models in `part` that can be recomputed, in order."""
    return [module for module in part.modules() if isinstance(module, GradientCheckpointingLayer)]


def checkpoint_activations(part: nn.Module, share: float) -> None:
    """Makes a share of the layers keep only their input and compute the rest again in the backward pass.

    The layers that keep everything are spread evenly over the depth. A share of 1 takes the least memory; each layer
    less saves a forward of that layer, about a third of its cost, for its activations.

    Args:
        part: with a model of transformers, or one of timm, of whose stages (or all, where it has none) the share is.
        share: 0 to 1.

    Raises:
        XTunerError: a share out of range.
    """
    if not 0 <= share <= 1:
        raise XTunerError(f"activation_checkpointing is {share}: expected True, False or the share of layers, 0 to 1.")
    if share == 0:
        return
    # the non-reentrant kind: frozen layers pass gradients on even where no input of theirs asks for one
    kwargs = {"use_reentrant": False}
    for model in [module for module in part.modules() if isinstance(module, PreTrainedModel)][:1]:
        if not model.supports_gradient_checkpointing:
            # whoever holds it does it, by the flag below
            continue
        if hasattr(model, "activation_checkpointing_enable"):
            model.activation_checkpointing_enable(activation_checkpointing_kwargs=kwargs)
        else:  # the name before transformers 5.20
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)
    for flag, layers in (
        ("gradient_checkpointing", checkpointing_layers(part)),
        ("grad_checkpointing", [m for m in part.modules() if isinstance(getattr(m, "grad_checkpointing", None), bool)]),
    ):
        for index, layer in enumerate(layers):
            # as many as the share says, evenly: those where the running total passes a whole number
            setattr(layer, flag, int((index + 1) * share + 1e-9) > int(index * share + 1e-9))


def zero_of(part: nn.Module) -> torch.Tensor:
    """Returns zero, a scalar that depends on every trained weight of `part`."""
    return 0 * sum((weight.sum() for weight in part.parameters() if weight.requires_grad), torch.zeros(()))


def idle_weights(part: nn.Module, outputs: Sequence[torch.Tensor]) -> list[nn.Parameter]:
    """Returns the trained weights of `part` that its outputs do not depend on: those of an unused head, for instance.

    Without a gradient of theirs DDP waits for one. Under ZeRO-3, where all ranks run the same modules, none are
    returned: a weight has no values outside of its own module.

    Args:
        part: as it has just run with gradients.
        outputs: of it.
    """
    trained = [weight for weight in part.parameters() if weight.requires_grad]
    if any(hasattr(weight, "ds_id") for weight in trained):
        return []
    reached, seen = set(), set()
    waiting = [output.grad_fn for output in outputs if output.grad_fn is not None]
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            reached.add(id(node.variable))
        waiting += [following for following, _ in node.next_functions if following is not None]
    return [weight for weight in trained if id(weight) not in reached]


def compile_modules(modules: Iterable[nn.Module], backend: str = "inductor", any_size: bool = True) -> None:
    """Compiles modules in place; their names and weights stay.

    Args:
        modules: each becomes a graph of its own.
        backend: of ``torch.compile``.
        any_size: for inputs of any size from the start; else for the sizes of the first inputs, and again for the sizes
            that have then proved to vary. What takes pictures of one size compiles in a sixth of the time so.
    """
    for module in modules:
        module.compile(dynamic=True if any_size else None, backend=backend)
