"""Names of the weights in LLaVA folders and here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

T = TypeVar("T")

_TRANSFORMERS = (
    # in a folder of transformers       here
    ("language_model.lm_head.", "llm.lm_head."),
    ("language_model.model.", "llm.model."),
    ("language_model.", "llm.model."),
    ("lm_head.", "llm.lm_head."),
    ("vision_tower.vision_model.", "low_res_encoder.clip."),
    ("vision_tower.", "low_res_encoder.clip."),
    ("multi_modal_projector.linear_1.", "projector.layers.0."),
    ("multi_modal_projector.linear_2.", "projector.layers.2."),
)
"""transformers before 4.52 and files on the Hub, and what later versions hold in memory."""
_OWN = (
    # of LLaVA's own code               here
    ("model.mm_projector.0.", "projector.layers.0."),
    ("model.mm_projector.2.", "projector.layers.2."),
    ("model.vision_tower.vision_tower.vision_model.", "low_res_encoder.clip."),
    ("model.vision_tower.vision_tower.", "low_res_encoder.clip."),
    ("lm_head.", "llm.lm_head."),
    ("model.", "llm.model."),
)
_WRITTEN = (
    # here                              in a folder of transformers
    ("llm.", "language_model."),
    ("low_res_encoder.clip.vision_model.", "vision_tower.vision_model."),
    ("low_res_encoder.clip.", "vision_tower.vision_model."),
    ("projector.layers.0.", "multi_modal_projector.linear_1."),
    ("projector.layers.2.", "multi_modal_projector.linear_2."),
)
_TRAINED_BESIDE_ADAPTERS = "base_model.model."
NEWLINE = "image_newline"
"""LLaVA-1.6's mark at the end of a row of tiles."""
_LEFT_OUT = ("position_ids", "rotary_emb.inv_freq")
"""Constants that older versions saved."""

Renaming = Callable[[str], str]


def from_transformers(name: str) -> str:
    """Returns the name here of a weight in a folder of transformers."""
    return _renamed(name.removeprefix("model."), _TRANSFORMERS)


def from_own_code(name: str) -> str:
    """Returns the name here of a weight that LLaVA's own code saved."""
    return _renamed(name.removeprefix(_TRAINED_BESIDE_ADAPTERS), _OWN)


def to_transformers(name: str) -> str:
    """Returns the name of a weight in a folder of transformers."""
    return _renamed(name, _WRITTEN)


def renamed(state: Mapping[str, T], rename: Renaming) -> dict[str, T]:
    """Returns a folder's weights under their names here, without constants and without the mark of rows."""
    kept = {name: value for name, value in state.items() if not name.endswith((*_LEFT_OUT, NEWLINE))}
    return {rename(name): value for name, value in kept.items()}


def _renamed(name: str, table: tuple[tuple[str, str], ...]) -> str:
    for old, new in table:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name
