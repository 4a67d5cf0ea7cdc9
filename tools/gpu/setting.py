"""What the rows of the check share: device, sizes, scratch folder, bounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch


class LeftOut(Exception):
    """A row that cannot run here, with the reason."""


class Unmet(Exception):
    """A row that ran and does not hold what it should.

    Args:
        said: what was found and what was expected.
        figures: what was measured.
    """

    def __init__(self, said: str, figures: Mapping[str, Any]) -> None:
        super().__init__(said)
        self.figures = dict(figures)


@dataclass(frozen=True)
class Setting:
    """How the check runs.

    Attributes:
        name: of the device, ``cuda`` or ``cpu``.
        tiny: tests' tiny parts in the place of the real sizes, and as few steps as show that a row runs.
        folder: for what rows write.
    """

    name: str
    tiny: bool
    folder: Path

    @property
    def device(self) -> torch.device:
        """Where the rows run."""
        return torch.device(self.name)

    @property
    def on_gpu(self) -> bool:
        """True on a CUDA device."""
        return self.name == "cuda"

    def scratch(self, name: str) -> Path:
        """Returns an empty folder of its own."""
        number = 0
        while (path := self.folder / f"{name}_{number}").exists():
            number += 1
        path.mkdir(parents=True)
        return path

    @cached_property
    def sizes(self) -> list[str]:
        """Settings that put tiny parts into a shipped config; none for the real sizes."""
        if not self.tiny:
            return []
        from tests.tiny_parts import HIGH_SIZE, tiny_clip_folder, tiny_convnext_folder, tiny_llm_folder

        parts = self.scratch("parts")
        return [
            f"llm_name_or_path={tiny_llm_folder(parts)}",
            f"visual_encoder_name_or_path={tiny_clip_folder(parts)}",
            f"visual_encoder_aux_path={tiny_convnext_folder(parts)}",
            f"image_size_aux={HIGH_SIZE}",
        ]

    def need_gpu(self, what: str) -> None:
        """Leaves a row out on the CPU.

        Raises:
            LeftOut: there.
        """
        if not self.on_gpu:
            raise LeftOut(f"{what} needs a GPU")


def within(figures: Mapping[str, Any], value: float, bound: float, what: str) -> dict[str, Any]:
    """Returns the figures with the bound beside them.

    Raises:
        Unmet: the value is beyond it, or no number.
    """
    shown = {**figures, "bound": bound}
    if not value <= bound:
        raise Unmet(f"{what} is {value:.3g}, expected at most {bound:.3g}", shown)
    return shown
