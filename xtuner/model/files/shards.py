"""Writing weights one after the other into safetensors files of a bounded size, with an index."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from xtuner.model.files.writing import write_safetensors

_LARGEST = 5 * 10**9
_SMALLEST = 64 * 10**6
_SHARE = 10


class ShardWriter:
    """Collects weights and writes a file whenever enough have come; names as transformers has them.

    Args:
        folder: exists; gets ``model.safetensors``, or ``model-00001-of-0000N.safetensors`` and their index.
        total_bytes: of all weights that will come, for the default of `max_bytes`.
        max_bytes: largest file (a single larger weight gets a file of its own). By default a tenth of the whole, so
            that writing needs little memory beside the model, between 64 MB and 5 GB.

    Attributes:
        total_bytes: written so far.
    """

    def __init__(self, folder: Path, total_bytes: int, max_bytes: int | None = None) -> None:
        self.folder = folder
        self.max_bytes = max_bytes or min(_LARGEST, max(_SMALLEST, total_bytes // _SHARE))
        self.total_bytes = 0
        self._waiting: dict[str, torch.Tensor] = {}
        self._waiting_bytes = 0
        self._files: list[list[str]] = []

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Takes a weight; those before it may be written now."""
        size = tensor.numel() * tensor.element_size()
        if self._waiting and self._waiting_bytes + size > self.max_bytes:
            self._write()
        self._waiting[name] = tensor.detach().cpu().contiguous()
        self._waiting_bytes += size
        self.total_bytes += size

    def finish(self) -> None:
        """Writes what waits, gives the files their final names and writes the index."""
        self._write()
        count = len(self._files)
        where: dict[str, str] = {}
        for number, names in enumerate(self._files, start=1):
            final = "model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
            self._path(number).replace(self.folder / final)
            where.update(dict.fromkeys(names, final))
        if count > 1:
            index = {"metadata": {"total_size": self.total_bytes}, "weight_map": where}
            text = json.dumps(index, indent=1, sort_keys=True) + "\n"
            (self.folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")

    def _path(self, number: int) -> Path:
        return self.folder / f"shard-{number}.safetensors"

    def _write(self) -> None:
        self._files.append(list(self._waiting))
        write_safetensors(self._waiting, self._path(len(self._files)))
        self._waiting.clear()
        self._waiting_bytes = 0
