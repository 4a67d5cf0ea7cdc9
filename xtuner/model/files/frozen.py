"""Marks of the weights that a training leaves alone and its checkpoints leave out."""

from __future__ import annotations

import zlib
from collections import defaultdict

import torch
from torch import nn

_PER_WEIGHT = 64


def frozen_marks(model: nn.Module) -> dict[str, str]:
    """Returns a mark of the frozen floating-point weights of each part: ``<number format>:<checksum>``.

    The checksum is over some values of every weight, evenly spread, so that it takes a moment for any size. Under
    ZeRO-3 it is of this rank's pieces.

    Args:
        model: its weights' names begin with the part's.
    """
    samples: dict[str, list[torch.Tensor]] = defaultdict(list)
    formats: dict[str, torch.dtype] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad or not parameter.is_floating_point():
            continue
        part = name.partition(".")[0]
        formats[part] = parameter.dtype
        samples[part].append(_some_values(parameter))
    marks = {}
    for part, values in samples.items():
        checksum = zlib.crc32(torch.cat(values).numpy().tobytes())
        marks[part] = f"{str(formats[part]).removeprefix('torch.')}:{checksum:08x}"
    return marks


@torch.no_grad()
def _some_values(parameter: nn.Parameter) -> torch.Tensor:
    piece = getattr(parameter, "ds_tensor", parameter).detach().flatten()
    # the last rank's piece is filled up with anything
    piece = piece[: getattr(parameter, "ds_numel", len(piece))]
    # offloaded weights of a part may lie on the host beside others on the GPU
    return piece[:: max(1, len(piece) // _PER_WEIGHT)][:_PER_WEIGHT].float().cpu()
