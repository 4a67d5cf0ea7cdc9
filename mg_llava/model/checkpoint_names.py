"""Names of the weights in published MG-LLaVA checkpoints and here: one table, both ways."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")

NAME_TABLE: tuple[tuple[str, str], ...] = (
    # published                    here
    ("fuse_module.slow_conv.", "fusion.high_conv."),
    ("fuse_module.slow_proj.", "fusion.high_proj."),
    ("fuse_module.fast_conv.", "fusion.low_conv."),
    ("fuse_module.fast_proj.", "fusion.low_proj."),
    ("fuse_module.gate.", "fusion.gate."),
    ("projector.model.", "projector.layers."),
    ("bbox_projector.model.", "object_encoder.projector.layers."),
    ("llm.", "llm."),
)
"""Beginnings of names; the rest of a name is the same on both sides."""

_PUBLISHED_ONLY = tuple(left for left, right in NAME_TABLE if left != right)


def is_published_layout(names: Mapping[str, object]) -> bool:
    """True if any of the names is one that only published checkpoints have."""
    return any(name.startswith(_PUBLISHED_ONLY) for name in names)


def own_names(state: Mapping[str, T]) -> dict[str, T]:
    """Returns `state` under the names of this package, whichever it came with."""
    return to_our_names(state) if is_published_layout(state) else dict(state)


def to_our_names(state: Mapping[str, T]) -> dict[str, T]:
    """Renames the weights of a published checkpoint; names in neither column are kept, so that they get
    reported.
    """
    return {_rename(name, NAME_TABLE): value for name, value in state.items()}


def to_published_names(state: Mapping[str, T]) -> dict[str, T]:
    """The inverse of `to_our_names`, for tools of the original that expect its names."""
    backwards = tuple((right, left) for left, right in NAME_TABLE)
    return {_rename(name, backwards): value for name, value in state.items()}


def _rename(name: str, table: tuple[tuple[str, str], ...]) -> str:
    for old, new in table:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name
