"""Marks of the weights that a training leaves alone and its checkpoints leave out."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

_PER_WEIGHT = 64
_FORMATS = (torch.float32, torch.bfloat16, torch.float16)

Marks = dict[str, Any]
"""``numbers``: how many the weights hold; ``formats``: the number formats they were seen in; and for each of float32,
bfloat16 and float16 a checksum of some values, rounded to it. Plain values, which a checkpoint can hold.
"""


class Sample(NamedTuple):
    """Some values of a weight.

    Attributes:
        values: float32, of evenly spread places.
        known: which of them this process has.
        dtype: of the weight.
        numbers: how many the weight holds.
    """

    values: torch.Tensor
    known: torch.Tensor
    dtype: torch.dtype
    numbers: int


def base_weights(part: nn.Module, trained: Iterable[str] = ()) -> Iterator[torch.Tensor | Sample | None]:
    """Yields a part's weights once each, but for those that are trained.

    Of a quantised weight comes the sample that `remember_values` took of what it was made from; None without one.

    Args:
        part: with or without adapters.
        trained: names within the part that are left out: those of its adapters.
    """
    left_out, seen = set(trained), set()
    for name, module in part.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen or f"{name}.{key}".removeprefix(".") in left_out:
                continue
            seen.add(id(parameter))
            yield parameter if parameter.is_floating_point() else getattr(module, "values_before_quantization", None)


def remember_values(module: nn.Module, weight: torch.Tensor) -> None:
    """Keeps a sample of the values that a quantised layer's weight was made from: rounding differs between devices."""
    module.values_before_quantization = _sample(weight)  # type: ignore[assignment]


def mark_weights(
    weights: Iterable[torch.Tensor | Sample | None], gather: Callable[[Any], list[Any]] = lambda own: [own]
) -> Marks | None:
    """Returns marks of weights in their order; None where there are none, or where one's values are not known.

    They are the same in every number format that holds the values, on every device, and however ZeRO-3 splits them.

    Args:
        weights: see `base_weights`.
        gather: collects an object of each process; under ZeRO-3 all call this together.
    """
    samples = []
    for weight in weights:
        if weight is None:
            return None
        samples.append(weight if isinstance(weight, Sample) else _sample(weight))
    samples = [sample for sample in samples if sample.numbers]
    if not samples:
        return None
    joined = torch.cat([sample.values for sample in samples]), torch.cat([sample.known for sample in samples])
    values = torch.zeros_like(joined[0])
    for theirs, known in gather(joined):
        values[known] = theirs[known]
    checksums = {_name(dtype): f"{zlib.crc32(values.to(dtype).float().numpy().tobytes()):08x}" for dtype in _FORMATS}
    return {
        "numbers": sum(sample.numbers for sample in samples),
        "formats": sorted({_name(sample.dtype) for sample in samples}),
        **checksums,
    }


def same_weights(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool | None:
    """Compares marks: True for the same weights, False for others, None where the number formats forbid to tell."""
    if first["numbers"] != second["numbers"]:
        return False
    formats = {*first["formats"], *second["formats"]}
    if any(first.get(name) == second.get(name) for name in formats if name in first):
        return True
    # each was rounded to what the other is not: bfloat16 has fewer digits, float16 a smaller range
    rounded_apart = "float32" not in formats and set(first["formats"]).isdisjoint(second["formats"])
    return None if rounded_apart else False


@torch.no_grad()
def _sample(weight: torch.Tensor) -> Sample:
    whole = getattr(weight, "ds_numel", weight.numel())
    piece = getattr(weight, "ds_tensor", weight).detach().reshape(-1)
    places = torch.arange(0, whole, max(1, whole // _PER_WEIGHT))[:_PER_WEIGHT]
    # under ZeRO-3 each rank holds a piece, the last one filled up with anything
    start = len(piece) * torch.distributed.get_rank() if hasattr(weight, "ds_tensor") else 0
    known = (places >= start) & (places < start + len(piece))
    values = torch.zeros(len(places))
    values[known] = piece[(places[known] - start).to(piece.device)].float().cpu()
    return Sample(values, known, weight.dtype, whole)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
