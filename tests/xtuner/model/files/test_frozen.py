"""Marks of frozen weights: the same for the same weights, others for others."""

from __future__ import annotations

import torch
from torch import nn

from xtuner.model.files.frozen import frozen_marks


def model(change: float = 0.0, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    parts = nn.ModuleDict({"one": nn.Linear(70, 30), "two": nn.Linear(3, 2), "trained": nn.Linear(2, 2)}).to(dtype)
    for name in ("one", "two"):
        parts[name].requires_grad_(False)
    with torch.no_grad():
        parts["one"].weight += change
    return parts


def test_by_part_and_number_format() -> None:
    marks = frozen_marks(model())
    assert list(marks) == ["one", "two"] and marks == frozen_marks(model())
    changed = frozen_marks(model(change=1e-3))
    assert changed["one"] != marks["one"] and changed["two"] == marks["two"]
    assert marks["one"].startswith("float32:")
    assert frozen_marks(model(dtype=torch.bfloat16))["one"].startswith("bfloat16:")


def test_a_piece_of_a_split_weight() -> None:
    """As ZeRO-3 leaves it: no values, this rank's piece in ``ds_tensor``, whose end is no part of the weight."""
    marks = []
    for piece in ([1.0, 2.0, 3.0, 0.0], [1.0, 2.0, 3.0, 7.0], [1.0, 2.0, 4.0, 0.0]):
        split = nn.ModuleDict({"one": nn.Linear(1, 1, bias=False)}).requires_grad_(False)
        weight = split["one"].weight
        weight.data = torch.empty(0)
        weight.ds_tensor, weight.ds_numel = torch.tensor(piece), 3
        marks.append(frozen_marks(split))
    assert marks[0] == marks[1] != marks[2]


def test_nothing_is_frozen() -> None:
    assert frozen_marks(nn.ModuleDict({"one": nn.Linear(1, 1)})) == {}
