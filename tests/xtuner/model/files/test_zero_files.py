"""Weights of DeepSpeed folders against DeepSpeed's own joining of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

from tests.zero_checkpoint import RANKS, save_zero_checkpoint
from xtuner.errors import XTunerError
from xtuner.model.files.weight_files import read_state_dict

TRAINED = {
    "head.weight": torch.arange(15.0).reshape(3, 5),  # odd, so that ranks fill up
    "head.bias": torch.arange(3.0) + 100,
    "scale": torch.tensor(0.5),
}
FROZEN = {"tower.weight": torch.arange(21.0).reshape(7, 3).bfloat16(), "tower.bias": torch.ones(1)}
BUFFERS = {"positions": torch.arange(4), "mean": torch.tensor([0.25, 0.75], dtype=torch.bfloat16)}
SHARED = {"tied.weight": "head.weight"}


@pytest.mark.parametrize("stage", [2, 3])
def test_equals_deepspeed(tmp_path: Path, stage: int) -> None:
    folder = save_zero_checkpoint(TRAINED, tmp_path / "iter_1.pth", stage, FROZEN, BUFFERS, SHARED)
    ours = read_state_dict(folder)
    theirs = get_fp32_state_dict_from_zero_checkpoint(str(tmp_path), tag=folder.name)
    assert ours.keys() == theirs.keys() == {*TRAINED, *FROZEN, *BUFFERS, *SHARED}
    for name, value in theirs.items():
        assert ours[name].dtype == value.dtype and torch.equal(ours[name], value), name
    assert torch.equal(ours["tied.weight"], TRAINED["head.weight"])
    assert ours["tower.weight"].dtype == torch.bfloat16 and torch.equal(ours["tower.weight"], FROZEN["tower.weight"])


def test_aligned_weights(tmp_path: Path) -> None:
    """Numbers between the weights, which belong to none."""
    folder = save_zero_checkpoint(TRAINED, tmp_path / "iter_1.pth", 2, gap=3)
    ours = read_state_dict(folder)
    assert ours.keys() == TRAINED.keys()
    assert all(torch.equal(ours[name], value) for name, value in TRAINED.items())
    theirs = get_fp32_state_dict_from_zero_checkpoint(str(tmp_path), tag=folder.name)
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


@pytest.mark.parametrize("stage", [2, 3])
def test_a_rank_is_missing(tmp_path: Path, stage: int) -> None:
    folder = save_zero_checkpoint(TRAINED, tmp_path / "iter_1.pth", stage)
    (folder / f"bf16_zero_pp_rank_{RANKS - 1}_mp_rank_00_optim_states.pt").unlink()
    with pytest.raises(XTunerError, match=r"written by 2 processes, but holds 1 \*_optim_states"):
        read_state_dict(folder)


@pytest.mark.parametrize("stage", [2, 3])
def test_files_of_two_checkpoints(tmp_path: Path, stage: int) -> None:
    folder = save_zero_checkpoint(TRAINED, tmp_path / "iter_1.pth", stage)
    larger = save_zero_checkpoint({**TRAINED, "more": torch.zeros(40)}, tmp_path / "iter_2.pth", stage)
    for file in larger.glob("*_optim_states.pt"):
        file.replace(folder / file.name)
    with pytest.raises(XTunerError, match="different checkpoints"):
        read_state_dict(folder)


def test_a_frozen_weight_that_is_cut_off(tmp_path: Path) -> None:
    folder = save_zero_checkpoint(TRAINED, tmp_path / "iter_1.pth", 3, FROZEN)
    last = folder / f"zero_pp_rank_{RANKS - 1}_mp_rank_00_model_states.pt"
    content = torch.load(last, weights_only=True)
    content["frozen_param_fragments"]["tower.weight"] = torch.zeros(2)
    torch.save(content, last)
    with pytest.raises(XTunerError, match="holds only part of tower.weight"):
        read_state_dict(folder)
