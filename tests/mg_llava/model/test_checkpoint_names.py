"""The table of names, both ways."""

from __future__ import annotations

import torch

from mg_llava.model.checkpoint_names import NAME_TABLE, is_published_layout, to_our_names, to_published_names


def names(state: dict[str, torch.Tensor]) -> list[str]:
    return list(state)


def test_columns_are_unambiguous() -> None:
    """No beginning is the beginning of another, so a name has one reading."""
    for column in zip(*NAME_TABLE, strict=True):
        assert len(set(column)) == len(NAME_TABLE)
        for one in column:
            assert not any(other.startswith(one) for other in column if other != one)


def test_every_row_both_ways() -> None:
    published = {left + "weight": torch.empty(0) for left, _ in NAME_TABLE}
    ours = to_our_names(published)
    assert names(ours) == [right + "weight" for _, right in NAME_TABLE]
    assert names(to_published_names(ours)) == names(published)


def test_unknown_names_are_kept() -> None:
    state = {"extra.weight": torch.empty(0)}
    assert names(to_our_names(state)) == names(to_published_names(state)) == ["extra.weight"]


def test_layout() -> None:
    assert is_published_layout({"bbox_projector.model.0.bias": None})
    assert not is_published_layout({"llm.lm_head.weight": None, "projector.layers.0.bias": None})
