"""The float32 weights in a DeepSpeed checkpoint folder (ZeRO 1 to 3), each put together only when it is asked for.

DeepSpeed's own ``zero_to_fp32`` joins whole parameter groups and keeps what it mapped, which takes two to four times a
bf16 model. Here the ranks' files are mapped, and mapped anew now and then, so that pages read before leave memory.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from xtuner.errors import XTunerError
from xtuner.model.files.pickles import load_pickle

_OPTIMIZER = "optimizer_state_dict"
_GROUPS = {1: "single_partition_of_fp32_groups", 2: "single_partition_of_fp32_groups", 3: "fp32_flat_groups"}
"""The key of a rank's float32 pieces by ZeRO stage."""
_SMALLEST = 64 * 10**6
_SHARE = 20


class Piece(NamedTuple):
    """A stretch of a flattened tensor in a file.

    Attributes:
        file: of one rank.
        keys: the way to the tensor in it.
        start: first element.
        length: elements.
    """

    file: Path
    keys: tuple[Any, ...]
    start: int
    length: int


class ZeroWeight(NamedTuple):
    """A weight that is not put together yet: its shape, number format and pieces in order."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    pieces: tuple[Piece, ...]


class ZeroFiles:
    """The files of all ranks of one checkpoint.

    Args:
        folder: holds ``*_model_states.pt`` and ``*_optim_states.pt``.

    Attributes:
        weights: by name: trained ones, frozen ones where the checkpoint has them, buffers.

    Raises:
        XTunerError: a rank's file is absent, or the pieces do not add up.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._mapped: dict[Path, Any] = {}
        self._read = 0
        models, optims = (sorted(folder.glob(f"*_{kind}_states.pt"), key=_natural) for kind in ("model", "optim"))
        self.weights = self._find(models, optims)
        total = sum(math.prod(weight.shape) * weight.dtype.itemsize for weight in self.weights.values())
        self._budget = max(_SMALLEST, total // _SHARE)
        self._mapped.clear()

    def load(self, name: str) -> torch.Tensor:
        """Puts a weight together, in memory of its own."""
        weight = self.weights[name]
        self._read += math.prod(weight.shape) * weight.dtype.itemsize
        if self._read > self._budget:
            self._mapped.clear()
            self._read = 0
        found = [self._tensor(p.file, p.keys).reshape(-1)[p.start : p.start + p.length] for p in weight.pieces]
        return torch.cat(found).to(weight.dtype).view(weight.shape)

    def _find(self, models: list[Path], optims: list[Path]) -> dict[str, ZeroWeight]:
        optimizer = self._open(optims[0])[_OPTIMIZER]
        stage, ranks = optimizer.get("zero_stage"), optimizer.get("partition_count")
        ranks = max(ranks) if isinstance(ranks, list) else ranks
        if stage not in _GROUPS:
            raise XTunerError(f"'{self.folder}' holds ZeRO stage {stage}: expected 1, 2 or 3.")
        wanted = ranks if stage == 3 else 1
        if len(optims) != ranks or len(models) < wanted:
            raise XTunerError(
                f"'{self.folder}' was written by {ranks} processes, but holds {len(optims)} *_optim_states.pt and "
                f"{len(models)} *_model_states.pt: copy the whole folder."
            )
        model = self._open(models[0])
        found = {
            name: ZeroWeight(
                tuple(value.shape),
                torch.float32 if value.is_floating_point() else value.dtype,
                (Piece(models[0], ("module", name), 0, value.numel()),),
            )
            for name, value in model["module"].items()
            if name in model["buffer_names"]
        }
        found |= dict(self._frozen(models[:wanted], model))
        trained = self._trained_3 if stage == 3 else self._trained_2
        found |= dict(trained(optims, model["param_shapes"], optimizer))
        for name, other in dict(model["shared_params"]).items():
            if other in found:
                found[name] = found[other]
        return found

    def _frozen(self, models: list[Path], model: Mapping[str, Any]) -> Iterator[tuple[str, ZeroWeight]]:
        for name, shape in (model.get("frozen_param_shapes") or {}).items():
            pieces, left = [], math.prod(shape)
            keys = ("frozen_param_fragments", name)
            for file in models:
                count = min(left, self._tensor(file, keys).numel())
                pieces.append(Piece(file, keys, 0, count))
                left -= count
            if left:
                raise self._short(name)
            yield name, ZeroWeight(tuple(shape), self._tensor(models[0], keys).dtype, tuple(pieces))

    def _trained_2(
        self, optims: list[Path], groups: list[Mapping[str, Any]], optimizer: Mapping[str, Any]
    ) -> Iterator[tuple[str, ZeroWeight]]:
        """ZeRO 1 and 2: each group of weights is one flat vector, cut into one piece a rank."""
        paddings = optimizer.get("param_alignment_paddings")
        for number, shapes in enumerate(groups):
            keys = (_OPTIMIZER, _GROUPS[2], number)
            vectors = [(file, keys, self._tensor(file, keys).numel()) for file in optims]
            dtype, offset = self._tensor(optims[0], keys).dtype, 0
            for index, (name, shape) in enumerate(shapes.items()):
                count = math.prod(shape)
                yield name, ZeroWeight(tuple(shape), dtype, self._stretch(name, vectors, offset, count))
                offset += count + (paddings[number][index] if paddings is not None else 0)
            # the vector is filled up to a multiple of twice the ranks; what is left beyond that belongs to a weight
            self._check_used(offset, sum(size for *_, size in vectors), 2 * len(optims))

    def _trained_3(
        self, optims: list[Path], groups: list[Mapping[str, Any]], optimizer: Mapping[str, Any]
    ) -> Iterator[tuple[str, ZeroWeight]]:
        """ZeRO 3: each weight is cut into one piece a rank; a rank's pieces follow one another in its vectors."""
        sizes = [vector.numel() for vector in optimizer[_GROUPS[3]]]
        ranks = [[(file, (_OPTIMIZER, _GROUPS[3], n), size) for n, size in enumerate(sizes)] for file in optims]
        dtype, offset = optimizer[_GROUPS[3]][0].dtype, 0
        for name, shape in (entry for shapes in groups for entry in shapes.items()):
            left, share = math.prod(shape), math.ceil(math.prod(shape) / len(optims))
            pieces: list[Piece] = []
            for vectors in ranks:
                # the last pieces are filled up
                pieces += self._stretch(name, vectors, offset, min(share, left))
                left -= min(share, left)
            yield name, ZeroWeight(tuple(shape), dtype, tuple(pieces))
            offset += share
        self._check_used(offset, sum(sizes), 1)

    def _stretch(
        self, name: str, vectors: list[tuple[Path, tuple[Any, ...], int]], start: int, count: int
    ) -> tuple[Piece, ...]:
        """Returns `count` elements from `start` on of vectors that follow one another."""
        pieces: list[Piece] = []
        begin, end = 0, start + count
        for file, keys, size in vectors:
            low, high = max(start, begin), min(end, begin + size)
            # one of no elements, for a weight without any
            if low < high or (count == 0 and not pieces):
                pieces.append(Piece(file, keys, low - begin if low < high else 0, max(0, high - low)))
            begin += size
        if begin < end:
            raise self._short(name)
        return tuple(pieces)

    def _check_used(self, used: int, available: int, multiple: int) -> None:
        if math.ceil(used / multiple) != math.ceil(available / multiple):
            raise XTunerError(
                f"'{self.folder}': its weights need {used} numbers, its optimizer files hold {available}, so the files "
                "belong to different checkpoints: copy the whole folder again."
            )

    def _short(self, name: str) -> XTunerError:
        return XTunerError(f"'{self.folder}' holds only part of {name}: copy the whole folder again.")

    def _tensor(self, file: Path, keys: tuple[Any, ...]) -> torch.Tensor:
        found = self._open(file)
        for key in keys:
            found = found[key]
        return found

    def _open(self, file: Path) -> Any:
        if file not in self._mapped:
            self._mapped[file] = load_pickle(file, mapped=True)
        return self._mapped[file]


def open_zero_files(folder: Path) -> dict[str, tuple[tuple[int, ...], torch.dtype, Any]]:
    """Returns shape, number format and loader of each weight in a DeepSpeed checkpoint folder; see `ZeroFiles`."""
    files = ZeroFiles(folder)
    return {name: (weight.shape, weight.dtype, partial(files.load, name)) for name, weight in files.weights.items()}


def _natural(file: Path) -> list[tuple[int, str]]:
    """Sorts rank 10 after rank 9."""
    return [(int(text), "") if text.isdigit() else (-1, text) for text in re.split(r"(\d+)", file.name)]
