"""Building the language model: any causal LM of transformers."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from xtuner.errors import XTunerError, nearest
from xtuner.model.meta import architecture_file, in_meta_init

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
        raise XTunerError(f"'{name_or_path}' has no config.json: expected a folder as transformers saves it.")
    shipped = architecture_file(name_or_path) if in_meta_init() and not folder.is_dir() else None
    if shipped is not None:
        values = json.loads(shipped.read_text(encoding="utf-8"))
        return AutoConfig.for_model(values.pop("model_type"), **values)
    try:
        return AutoConfig.from_pretrained(name_or_path)
    except (OSError, ValueError) as error:
        raise XTunerError(
            f"the language model '{name_or_path}' cannot be read: {str(error).splitlines()[0]} "
            "Give a folder with config.json, or a name on the Hugging Face hub and a network."
        ) from error


def resolve_attention(attn_implementation: str) -> str:
    """Returns what ``auto`` means here: FlashAttention 2 if it is installed beside a GPU, else torch's own
    (sdpa).
    """
    if attn_implementation != "auto":
        return attn_implementation
    has_flash = torch.cuda.is_available() and importlib.util.find_spec("flash_attn") is not None
    return "flash_attention_2" if has_flash else "sdpa"


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


def build_llm(
    name_or_path: str,
    dtype: str = "auto",
    attn_implementation: str = "auto",
    model_kwargs: Mapping[str, Any] | None = None,
) -> PreTrainedModel:
    """Builds a causal language model with its weights; under `meta_init` only its shape.

    Args:
        name_or_path: folder or hub name.
        dtype: ``auto`` (as saved), ``bfloat16``, ``float16`` or ``float32``.
        attn_implementation: ``auto``, ``sdpa``, ``eager``, ``flash_attention_2`` or ``flex_attention``.
        model_kwargs: further arguments of ``AutoModelForCausalLM.from_pretrained``, quantisation for
            instance.

    Raises:
        XTunerError: the model cannot be read, or an argument's value is unknown.
    """
    config = read_llm_config(name_or_path)
    attention, torch_dtype = resolve_attention(attn_implementation), resolve_dtype(dtype)
    if in_meta_init():
        if torch_dtype == "auto":
            torch_dtype = getattr(config, "dtype", None) or torch.float32
        return AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch_dtype)
    try:
        return AutoModelForCausalLM.from_pretrained(
            name_or_path,
            config=config,
            dtype=torch_dtype,
            attn_implementation=attention,
            **(model_kwargs or {}),
        )
    except OSError as error:
        raise XTunerError(
            f"the weights of '{name_or_path}' cannot be read: {str(error).splitlines()[0]} "
            "Download them completely (config.json, *.safetensors)."
        ) from error
