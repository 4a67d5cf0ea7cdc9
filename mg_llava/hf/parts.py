"""The parts that an exported folder's config.json describes, built from it alone and without weights."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from mg_llava.hf.configuration import MGLLaVAConfig
from mg_llava.model.vision import CONNECTORS, ENCODERS, VisionSide
from xtuner.model.llm import resolve_dtype
from xtuner.model.meta import meta_init
from xtuner.registry import build

PART_NAMES = (*ENCODERS, *CONNECTORS, "llm")
FRAME_POOLING = "frame_pooling"
"""The node of a model that is no part, having no weights, and shapes what the parts make."""


def build_vision(config: MGLLaVAConfig, dtype: torch.dtype | None = None) -> VisionSide:
    """Returns the vision side, on the current device.

    Args:
        config: checked, see `MGLLaVAConfig.check`.
        dtype: number format of all parts; None = that in which each was saved.
    """
    nodes: dict[str, Any] = {name: config.parts.get(name) for name in (*ENCODERS, *CONNECTORS, FRAME_POOLING)}
    with meta_init(device=None):
        low = build(nodes.pop("low_res_encoder"), name_or_path=config.vision_config)
        high = build(nodes.pop("high_res_encoder"), path=config.high_res_config)
        width = config.get_text_config().hidden_size
        vision = VisionSide(low_res_encoder=low, high_res_encoder=high, width=width, **nodes)
    for name, part in vision.parts().items():
        part.to(saved_dtype(config, name) if dtype is None else dtype)
    return vision


def build_text(config: MGLLaVAConfig) -> PreTrainedModel:
    """Returns the language model as transformers has it."""
    return AutoModelForCausalLM.from_config(
        config.text_config, dtype=saved_dtype(config, "llm"), attn_implementation=config._attn_implementation
    )


def saved_dtype(config: MGLLaVAConfig, part: str) -> torch.dtype:
    """Returns the number format that a part was saved in, else the current one."""
    wanted = resolve_dtype(config.part_dtypes.get(part, "auto"))
    return wanted if isinstance(wanted, torch.dtype) else torch.get_default_dtype()
