"""Settings of a language model's layers: which are computed again in the backward pass, which are compiled."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from xtuner.errors import XTunerError


def checkpointing_layers(llm: nn.Module) -> list[GradientCheckpointingLayer]:
    """Returns the layers that can be recomputed, in order."""
    return [module for module in llm.modules() if isinstance(module, GradientCheckpointingLayer)]


def checkpoint_activations(llm: PreTrainedModel, share: float) -> None:
    """Makes a share of the layers keep only their input and compute the rest again in the backward pass.

    The layers that keep everything are spread evenly over the depth. A share of 1 takes the least memory; each layer
    less saves a forward of that layer, about a third of its cost, for its activations.

    Args:
        llm: a language model of transformers.
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
    if hasattr(llm, "activation_checkpointing_enable"):
        llm.activation_checkpointing_enable(activation_checkpointing_kwargs=kwargs)
    else:  # the name before transformers 5.20
        llm.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)
    layers = checkpointing_layers(llm)
    for index, layer in enumerate(layers):
        # as many as the share says, evenly: those where the running total passes a whole number
        layer.gradient_checkpointing = int((index + 1) * share + 1e-9) > int(index * share + 1e-9)


def compile_modules(modules: Iterable[nn.Module], backend: str = "inductor") -> None:
    """Compiles modules in place, for inputs of any length; their names and weights stay."""
    for module in modules:
        module.compile(dynamic=True, backend=backend)
