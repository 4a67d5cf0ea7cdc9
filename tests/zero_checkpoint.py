"""DeepSpeed checkpoint folders as two ranks leave them, written without running DeepSpeed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

RANKS = 2


def save_zero_checkpoint(
    state: Mapping[str, torch.Tensor],
    folder: Path,
    stage: int,
    frozen: Mapping[str, torch.Tensor] | None = None,
    buffers: Mapping[str, torch.Tensor] | None = None,
    shared: Mapping[str, str] | None = None,
    gap: int = 0,
) -> Path:
    """Writes float32 weights as the pieces of two ranks under ZeRO-2 or ZeRO-3, all in one parameter group.

    Args:
        state: trained weights by name.
        folder: gets the ranks' files.
        stage: 2 (one flat vector cut in two) or 3 (each weight cut in two).
        frozen: weights that are not trained, kept in their own number format.
        buffers: of the model.
        shared: further names of weights.
        gap: numbers of no meaning after each weight, as DeepSpeed aligns them under ZeRO-2.
    """
    folder.mkdir(parents=True)
    flat = [torch.cat([value.float().flatten(), torch.full((gap,), 77.0)]) for value in state.values()]
    if stage == 2:
        pieces = list(_padded(torch.cat(flat), 2 * RANKS).chunk(RANKS))
    else:
        cut = [_padded(vector, RANKS).chunk(RANKS) for vector in flat]
        pieces = [torch.cat([part[rank] for part in cut]) for rank in range(RANKS)]
    model: dict[str, Any] = {
        "module": dict(buffers or {}),
        "buffer_names": list(buffers or {}),
        "param_shapes": [OrderedDict((name, value.shape) for name, value in state.items())],
        "shared_params": dict(shared or {}),
        "ds_version": "0.19.8",
    }
    for rank in range(RANKS):
        prefix = f"zero_pp_rank_{rank}_" if stage == 3 else ""
        if rank == 0 or stage == 3:
            held = _frozen_pieces(frozen, rank, stage) if frozen else {}
            torch.save({**model, **held}, folder / f"{prefix}mp_rank_00_model_states.pt")
        key = "single_partition_of_fp32_groups" if stage == 2 else "fp32_flat_groups"
        optimizer = {"zero_stage": stage, "partition_count": RANKS, key: [pieces[rank].clone()]}
        if gap:
            optimizer["param_alignment_paddings"] = [[gap] * len(state)]
        path = folder / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        torch.save({"optimizer_state_dict": optimizer}, path)
    return folder


def _frozen_pieces(frozen: Mapping[str, torch.Tensor], rank: int, stage: int) -> dict[str, Any]:
    """A rank's entries: whole weights under ZeRO-2, pieces filled up to equal lengths under ZeRO-3."""
    held = dict(frozen)
    if stage == 3:
        held = {name: _padded(value.flatten(), RANKS).chunk(RANKS)[rank].clone() for name, value in frozen.items()}
    shapes = {name: value.shape for name, value in frozen.items()}
    return {"frozen_param_shapes": shapes, "frozen_param_fragments": held}


def _padded(vector: torch.Tensor, multiple: int) -> torch.Tensor:
    return torch.nn.functional.pad(vector, (0, -len(vector) % multiple))
