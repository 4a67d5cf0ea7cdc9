"""Building the language model: any causal LM of transformers."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils import cached_file

from xtuner.errors import XTunerError, nearest, reason_of
from xtuner.log import get_logger
from xtuner.model.files.frozen import remember_values
from xtuner.model.files.pickles import pickles_in, restricted_loading
from xtuner.model.files.quantized import quantized_layers
from xtuner.model.files.quiet import quiet_transformers
from xtuner.model.files.weight_files import open_weights
from xtuner.model.generation import read_generation
from xtuner.model.meta import architecture_file, in_meta_init
from xtuner.model.placement import loading_arguments

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def read_llm_config(name_or_path: str) -> PretrainedConfig:
    """Returns the transformers config of a model folder or hub name.

    Under `meta_init` a model that cannot be reached is described by the shipped ``configs/architectures``
    file of its name.

    Raises:
        XTunerError: no config is found, or its model type is unknown to the installed transformers.
    """
    folder = Path(name_or_path)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise XTunerError(
            f"'{name_or_path}' has no config.json: expected a model folder in the format of transformers."
        )
    shipped = architecture_file(name_or_path) if in_meta_init() and not folder.is_dir() else None
    if shipped is not None:
        values = json.loads(shipped.read_text(encoding="utf-8"))
        return AutoConfig.for_model(values.pop("model_type"), **values)
    try:
        return AutoConfig.from_pretrained(name_or_path)
    except (OSError, ValueError) as error:
        raise XTunerError(
            f"the language model '{name_or_path}' cannot be read: {reason_of(error)}; "
            "pass a folder with config.json, or a name on the Hugging Face hub with network access."
        ) from error


def resolve_attention(attn_implementation: str) -> str:
    """Returns what ``auto`` means here: FlashAttention 2 if it is installed beside a GPU, else torch's own
    (sdpa).
    """
    if attn_implementation != "auto":
        return attn_implementation
    has_flash = torch.cuda.is_available() and importlib.util.find_spec("flash_attn") is not None
    return "flash_attention_2" if has_flash else "sdpa"


def layout_advice(attn_implementation: str, pack: bool) -> str | None:
    """Returns a sentence where a micro-batch's layout does not suit the attention; None where it does.

    Attention of variable lengths (flash, flex) keeps packed samples apart at no cost. The others build a dense mask
    over the whole row, so that its work grows with the square of the micro-batch's tokens: padding costs less.
    """
    attention = resolve_attention(attn_implementation)
    variable = attention.startswith(("flash", "flex"))
    if variable and not pack:
        return f"{attention} supports packed samples: pack=True removes the padding and keeps the loss."
    if pack and not variable:
        return (
            f"pack=True with {attention} attention: each row costs the square of all its tokens: set "
            "attn_implementation=flash_attention_2 (pip install flash-attn), or pack=False."
        )
    return None


def resolve_dtype(dtype: str) -> torch.dtype | str:
    """Returns the torch type of a config's ``dtype``; ``auto`` (as the checkpoint was saved) stays as it is.

    Raises:
        XTunerError: unknown name.
    """
    if dtype == "auto":
        return dtype
    name = dtype.removeprefix("torch.")
    if name not in _DTYPES:
        choices = ["auto", *_DTYPES]
        raise XTunerError(f"dtype is '{dtype}': expected one of {choices}.{nearest(name, choices)}")
    return _DTYPES[name]


def quantization_arguments(quantization: str | None) -> dict[str, Any]:
    """Returns arguments of ``from_pretrained`` for a config's ``quantization``; none for None.

    4 bit is QLoRA's: normal float, the scales quantised once more (arXiv 2305.14314).

    Raises:
        XTunerError: unknown value, or bitsandbytes is not installed.
    """
    if quantization is None:
        return {}
    if quantization not in ("4bit", "8bit"):
        raise XTunerError(f"quantization is '{quantization}': expected None, '4bit' or '8bit'.")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise XTunerError("quantization needs the package bitsandbytes: run 'pip install bitsandbytes'.")
    if quantization == "8bit":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    compute = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute,
        )
    }


def build_llm(
    name_or_path: str,
    dtype: str = "auto",
    attn_implementation: str = "auto",
    quantization: str | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
) -> PreTrainedModel:
    """Builds a causal language model with its weights; under `meta_init` only its shape.

    Args:
        name_or_path: folder or hub name.
        dtype: ``auto`` (as saved), ``bfloat16``, ``float16`` or ``float32``.
        attn_implementation: ``auto``, ``sdpa``, ``eager``, ``flash_attention_2`` or ``flex_attention``.
        quantization: ``4bit`` or ``8bit`` by bitsandbytes (for QLoRA: see `MGLLaVA`'s ``llm_lora``); None for none.
        model_kwargs: further arguments of ``AutoModelForCausalLM.from_pretrained``.

    Raises:
        XTunerError: the model cannot be read, or an argument's value is unknown.
    """
    config = read_llm_config(name_or_path)
    extra = {**loading_arguments(), **quantization_arguments(quantization), **(model_kwargs or {})}
    attention, torch_dtype = resolve_attention(attn_implementation), resolve_dtype(dtype)
    if in_meta_init():
        if torch_dtype == "auto":
            torch_dtype = getattr(config, "dtype", None) or torch.float32
        llm = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch_dtype)
        # what is not here need not be looked for elsewhere to know a shape
        llm.asked_generation = read_generation(name_or_path) if Path(name_or_path).is_dir() else {}
        return llm
    try:
        with restricted_loading(pickles_in(name_or_path)), quiet_transformers():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                name_or_path,
                config=config,
                dtype=torch_dtype,
                attn_implementation=attention,
                output_loading_info=True,
                **{"generation_config": GenerationConfig(), **extra},
            )
    except OSError as error:
        raise XTunerError(
            f"the weights of '{name_or_path}' cannot be read: {reason_of(error)}; "
            "download all of its files (config.json, *.safetensors)."
        ) from error
    llm, info = loaded
    _check_complete(info, name_or_path)
    llm.asked_generation = read_generation(name_or_path)  # type: ignore[assignment]
    if quantization is not None:
        _keep_gradients(llm)
        _remember_files(llm, name_or_path)
    return llm


def _check_complete(info: Mapping[str, Any], name_or_path: str) -> None:
    """Refuses files that lack weights, which transformers fills with random numbers."""
    missing, unused = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    if missing:
        raise XTunerError(
            f"'{name_or_path}' lacks {len(missing)} weights of its language model, {missing[0]} for one: download all "
            "of its files (config.json, *.safetensors)."
        )
    if unused:
        get_logger().info(
            "%s: %d weights that its config.json has no place for are not used, e.g. %s",
            name_or_path,
            len(unused),
            unused[0],
        )


def _remember_files(llm: PreTrainedModel, name_or_path: str) -> None:
    """Lets quantised layers remember the values in the model's files, by which checkpoints know their base."""
    layers = quantized_layers(llm)
    config = cached_file(name_or_path, "config.json")
    weights = open_weights(Path(str(config)).parent)
    for name, layer in layers.items():
        if f"{name}.weight" in weights:
            remember_values(layer, weights[f"{name}.weight"].load())


def _keep_gradients(llm: PreTrainedModel) -> None:
    """Keeps bitsandbytes from repacking 4-bit weights on the CPU in eval mode: its kernel for them has no gradient, so
    that a training after an evaluation would go wrong in silence.
    """
    for module in llm.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
