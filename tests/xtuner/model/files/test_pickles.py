"""Pickles of checkpoints: members of enumerations as Python up to 3.11.3 writes them, and nothing else by that name."""

from __future__ import annotations

from enum import IntEnum
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.runtime.zero.config import ZeroStageEnum

from xtuner.errors import XTunerError
from xtuner.model.files.pickles import foreign_names, load_pickle


class _Got:
    """Pickled as ``getattr(holder, name)``."""

    def __init__(self, holder: Any, name: str) -> None:
        self.holder, self.name = holder, name

    def __reduce__(self) -> Any:
        return getattr, (self.holder, self.name)


def save(path: Path, value: Any) -> Path:
    torch.save({"zero_stage": value}, path)
    return path


def test_a_member_of_deepspeeds_enumeration(tmp_path: Path) -> None:
    path = save(tmp_path / "a_optim_states.pt", _Got(ZeroStageEnum, "weights"))
    assert foreign_names(path) == []
    assert load_pickle(path) == {"zero_stage": ZeroStageEnum.weights}


@pytest.mark.parametrize("holder, name", [(Path, "unlink"), (IntEnum, "__subclasses__"), (torch.Tensor, "numpy")])
def test_getattr_of_anything_else(holder: Any, name: str, tmp_path: Path) -> None:
    path = save(tmp_path / "a_optim_states.pt", _Got(holder, name))
    with pytest.raises(XTunerError):
        load_pickle(path)
