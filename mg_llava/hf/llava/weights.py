"""The weights of a LLaVA folder under their names here, complete or refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, CLIPVisionModel

from mg_llava.hf.llava.layouts import Layout
from mg_llava.hf.llava.names import renamed
from xtuner.errors import ProblemsError, XTunerError, counted, reason_of
from xtuner.json_values import read_json
from xtuner.log import get_logger
from xtuner.model.files.pickles import pickles_in, restricted_loading
from xtuner.model.files.quiet import quiet_transformers
from xtuner.model.files.weight_files import Weight, open_weights
from xtuner.model.projector import MLPProjector

_ADAPTER = "adapter_config.json"
_BESIDE_ADAPTERS = "non_lora_trainables.bin"
_PROJECTOR_ALONE = "mm_projector.bin"
_SHOWN = 3


def language_model_base(folder: Path, layout: Layout, base: str | None) -> Path | None:
    """Returns the folder of the language model that a LLaVA of adapters or of a projector alone stands on.

    Raises:
        XTunerError: it is not given, or nothing is there.
    """
    if not layout.own or not (_has_adapter(folder) or _is_projector(folder)):
        if base is not None:
            raise XTunerError(f"--base {base}: '{folder}' holds its language model, so leave --base out.")
        return None
    named = read_json(folder / _ADAPTER, dict).get("base_model_name_or_path") if _has_adapter(folder) else None
    place = base or named
    if place is None or not Path(place).is_dir():
        what = "adapters (LoRA)" if _has_adapter(folder) else "the projector alone"
        at = f" at '{place}'" if place else ""
        raise XTunerError(
            f"'{folder}' holds {what}, and its language model is not found{at}: give the model's folder, --base PATH"
            + (f" (it was trained on {named})." if named else ".")
        )
    return Path(place)


def open_parts(folder: Path, layout: Layout, base: Path | None) -> dict[str, Weight]:
    """Returns the weights of language model, projector and, where the folder has them, CLIP.

    Args:
        folder: LLaVA's.
        layout: of the folder.
        base: of the language model, see `language_model_base`.

    Raises:
        ProblemsError: weights are absent or of another shape.
    """
    if base is None:
        found = renamed(open_weights(folder), layout.rename)
    else:
        own = _BESIDE_ADAPTERS if _has_adapter(folder) else _PROJECTOR_ALONE
        found = {**_language_model(folder, base), **renamed(open_weights(folder / own), layout.rename)}
    try:
        expected = _expected(layout, with_clip=any(name.startswith("low_res_encoder.") for name in found))
    # transformers and torch refuse odd sizes in errors of several kinds
    except Exception as error:
        raise XTunerError(
            f"config.json of '{folder}' describes no model that can be built: {' '.join(str(error).split())}"
        ) from error
    if (head := "llm.lm_head.weight") not in found and layout.text_config.tie_word_embeddings:
        del expected[head]
    _check(folder, found, expected)
    return {name: found[name] for name in expected}


def model_shapes(layout: Layout) -> tuple[nn.Module, nn.Module]:
    """Returns the language model and CLIP without memory."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(layout.text_config), CLIPVisionModel(layout.vision_config)


def _expected(layout: Layout, with_clip: bool) -> dict[str, tuple[int, ...]]:
    """Shapes by name here."""
    llm, clip = model_shapes(layout)
    with torch.device("meta"):
        projector = MLPProjector(layout.vision_config.hidden_size, layout.text_config.hidden_size)
    parts: dict[str, nn.Module] = {"llm.": llm, "projector.": projector}
    if with_clip:
        # older transformers wrap the transformer once more
        parts["low_res_encoder.clip."] = getattr(clip, "vision_model", clip)
    return {f"{part}{name}": tuple(tensor.shape) for part, module in parts.items() for name, tensor in _weights(module)}


def _weights(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [(name, value) for name, value in module.state_dict().items() if not name.endswith("position_ids")]


def _check(folder: Path, found: Mapping[str, Weight], expected: Mapping[str, tuple[int, ...]]) -> None:
    problems = []
    absent = [name for name in expected if name not in found]
    if absent:
        problems.append(f"it lacks {counted(len(absent), 'weights')}: {_some(absent)}. Fetch the folder again")
    problems += [
        f"{name} is {found[name].shape}, config.json says {shape}"
        for name, shape in expected.items()
        if name in found and found[name].shape != shape
    ][:_SHOWN]
    if problems:
        raise ProblemsError(f"the LLaVA folder '{folder}'", problems)
    left = [name for name in found if name not in expected]
    if left:
        get_logger().warning("%s: unknown weights left out: %d, e.g. %s", folder, len(left), _some(left))


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _is_projector(folder: Path) -> bool:
    whole = [*folder.glob("pytorch_model*.bin"), *folder.glob("model*.safetensors")]
    return (folder / _PROJECTOR_ALONE).is_file() and not whole


def _has_adapter(folder: Path) -> bool:
    return (folder / _ADAPTER).is_file()


def _language_model(folder: Path, base: Path) -> dict[str, Weight]:
    """The base's weights, with the folder's adapters merged where it has some."""
    if not _has_adapter(folder):
        return {f"llm.{name}": weight for name, weight in open_weights(base).items()}
    from peft import PeftModel  # takes a second, and few folders need it

    try:
        with restricted_loading([*pickles_in(base), *pickles_in(folder)]), quiet_transformers():
            model: Any = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
            merged = PeftModel.from_pretrained(model, str(folder)).merge_and_unload(safe_merge=True)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise XTunerError(
            f"the adapters of '{folder}' do not fit the language model '{base}': {reason_of(error)}."
        ) from error
    return {
        f"llm.{name}": Weight(tuple(tensor.shape), tensor.dtype, lambda tensor=tensor: tensor)  # type: ignore[misc]
        for name, tensor in merged.state_dict().items()
    }
