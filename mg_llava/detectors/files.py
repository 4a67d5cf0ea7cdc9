"""Boxes that are already there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image

from mg_llava.boxes.selection import PictureBoxes
from mg_llava.boxes.store import BoxStore
from xtuner.errors import XTunerError


class BoxFileDetector:
    """Looks boxes up in a box file.

    Args:
        path: see `BoxStore`.
        device: not used.
    """

    def __init__(self, path: str, device: torch.device | str | None = None) -> None:
        self.store = BoxStore(path)

    def __call__(self, pictures: Sequence[Image.Image], keys: Sequence[str] | None = None) -> list[PictureBoxes]:
        """See `Detector`; pictures that the file does not know have no boxes.

        Raises:
            XTunerError: pictures without a path.
        """
        if keys is None:
            raise XTunerError(f"boxes of '{self.store.path}' are looked up by a picture's path, which is unknown here.")
        return [self.store.lookup(key) for key in keys]
