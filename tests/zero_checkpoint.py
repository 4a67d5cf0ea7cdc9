"""DeepSpeed checkpoint folders as two ranks leave them, written without running DeepSpeed."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import torch

RANKS = 2


def save_zero_checkpoint(state: dict[str, torch.Tensor], folder: Path, stage: int) -> Path:
    """Writes float32 weights as the pieces of two ranks under ZeRO-2 or ZeRO-3.

    Args:
        state: weights by name.
        folder: gets the ranks' files.
        stage: 2 (one flat vector cut in two) or 3 (each weight cut in two).
    """
    folder.mkdir(parents=True)
    shapes = OrderedDict((name, torch.Size(value.shape)) for name, value in state.items())
    flat = [value.float().flatten() for value in state.values()]
    if stage == 2:
        pieces = list(_padded(torch.cat(flat), 2 * RANKS).chunk(RANKS))
    else:
        cut = [_padded(vector, RANKS).chunk(RANKS) for vector in flat]
        pieces = [torch.cat([part[rank] for part in cut]) for rank in range(RANKS)]
    model = {"module": {}, "buffer_names": [], "param_shapes": [shapes], "shared_params": {}, "ds_version": "0.19.8"}
    for rank in range(RANKS):
        prefix = f"zero_pp_rank_{rank}_" if stage == 3 else ""
        if rank == 0 or stage == 3:
            torch.save(model, folder / f"{prefix}mp_rank_00_model_states.pt")
        key = "single_partition_of_fp32_groups" if stage == 2 else "fp32_flat_groups"
        optimizer = {"zero_stage": stage, "partition_count": RANKS, key: [pieces[rank].clone()]}
        path = folder / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        torch.save({"optimizer_state_dict": optimizer}, path)
    return folder


def _padded(vector: torch.Tensor, multiple: int) -> torch.Tensor:
    return torch.nn.functional.pad(vector, (0, -len(vector) % multiple))
