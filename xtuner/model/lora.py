"""Low-rank adapters (LoRA) by peft, put into a part of the model in place: names of its other weights change little."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

from xtuner.errors import XTunerError, nearest
from xtuner.model.files.writing import write_safetensors

BASE_FILE = "base.json"
"""Beside saved adapters: ``name`` and ``marks`` of the weights that they belong to."""


def linear_names(part: nn.Module) -> list[str]:
    """Returns the last names of a part's linear layers, its output head left out, sorted: the default targets."""
    head = part.get_output_embeddings() if isinstance(part, PreTrainedModel) else None
    linear = [name for name, module in part.named_modules() if isinstance(module, nn.Linear) and module is not head]
    return sorted({name.rpartition(".")[2] for name in linear})


def add_adapters(part: nn.Module, lora: LoraConfig, setting: str) -> frozenset[str]:
    """Puts adapters into `part`, in place, and freezes all else in it.

    Args:
        part: with linear layers; they may be quantised.
        lora: peft's settings; without ``target_modules`` every linear layer but the head gets an adapter.
        setting: its name, for messages.

    Returns:
        The names, within the part, of the weights that are trained.

    Raises:
        XTunerError: a name in ``target_modules`` is no layer's.
    """
    if lora.target_modules is None:
        lora.target_modules = linear_names(part)
    wanted = [lora.target_modules] if isinstance(lora.target_modules, str) else sorted(lora.target_modules)
    if not isinstance(lora.target_modules, str):
        # of several names peft takes those that it finds, and says nothing of the others
        layers = [f".{name}" for name, _ in part.named_modules()]
        unknown = [name for name in wanted if not any(layer.endswith(f".{name}") for layer in layers)]
        if unknown:
            raise _no_such_layer(part, unknown, setting)
    try:
        inject_adapter_in_model(lora, part)
    except ValueError as error:
        if "not found" not in str(error) and "No modules were targeted" not in str(error):
            raise
        raise _no_such_layer(part, wanted, setting) from error
    return frozenset(name for name, parameter in part.named_parameters() if parameter.requires_grad)


def _no_such_layer(part: nn.Module, names: list[str], setting: str) -> XTunerError:
    choices = linear_names(part)
    hint = nearest(names[0], choices) if names else ""
    return XTunerError(
        f"{setting}: target_modules {names} match no layer; expected one or more of {choices}.{hint} "
        "Without the setting, every layer gets an adapter."
    )


def save_adapters(part: nn.Module, lora: LoraConfig, folder: Path, base: str) -> None:
    """Writes the adapters as ``peft.PeftModel.from_pretrained(base_model, folder)`` reads them.

    Args:
        part: with adapters.
        lora: their settings.
        folder: target, is made.
        base: name or path of the model they belong to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = get_peft_model_state_dict(part, adapter_name="default")
    # peft will put them into the model of transformers that is in the part, or is the part
    place = next((name for name, module in part.named_modules() if isinstance(module, PreTrainedModel)), "")
    inner = {name.removeprefix(f"{place}."): value for name, value in state.items()}
    tensors = {f"base_model.model.{name}": value.detach().cpu().contiguous() for name, value in inner.items()}
    write_safetensors(tensors, folder / "adapter_model.safetensors")
    lora.base_model_name_or_path = base
    lora.inference_mode = True
    # layers above the one that is read are not built here: the adapters that peft makes for them change nothing
    lora.init_lora_weights = True
    lora.save_pretrained(str(folder))


def merged_weights(part: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields a part's weights under the names of the plain part, adapters added, module after module.

    A layer is merged when it is its turn, and every module is given up after it: the part is never held twice, files
    that it was mapped from leave memory one after the other, and it is of no use afterwards.
    """
    adapted: tuple[str, ...] = ()
    for name, module in part.named_modules():
        if adapted and name.startswith(adapted):
            continue
        if isinstance(module, BaseTunerLayer):
            adapted += (f"{name}.",)
            module.merge(safe_merge=True)
            module = module.get_base_layer()
            state = module.state_dict()
        else:
            state = {}
            module._save_to_state_dict(state, "", keep_vars=False)
        for key, value in state.items():
            yield f"{name}.{key}".removeprefix("."), value.detach()
        module._apply(lambda tensor: tensor.to("meta"), recurse=False)
