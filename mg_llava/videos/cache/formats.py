"""How a kept frame is written: JPEG, small, or PNG, bit for bit."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from xtuner.errors import XTunerError

NAMES = ("jpeg", "png")
QUALITY = 95
"""Of JPEG, unless another is asked for; colours are kept at full resolution (4:4:4)."""
_FAST = 1
"""Level of PNG's compression: higher ones save some percent of the size for many times the time."""


@dataclass(frozen=True)
class FrameFormat:
    """A format of pictures and how it is written.

    Args:
        name: "jpeg" or "png"; PNG gives the very pixels that were decoded.
        quality: of JPEG, 1 to 100.

    Raises:
        XTunerError: another name or quality.
    """

    name: Literal["jpeg", "png"] = "jpeg"
    quality: int = QUALITY

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise XTunerError(f"frames are kept as {' or '.join(NAMES)}, not as {self.name!r}: choose one of them.")
        if not (isinstance(self.quality, int) and 1 <= self.quality <= 100):
            raise XTunerError(f"quality={self.quality!r}: expected a whole number from 1 to 100 (JPEG's).")

    def __str__(self) -> str:
        return "PNG" if self.name == "png" else f"JPEG of quality {self.quality}"

    def encode(self, picture: Image.Image) -> bytes:
        """Returns the file's bytes of an 8-bit RGB picture."""
        content = io.BytesIO()
        if self.name == "png":
            picture.save(content, "PNG", compress_level=_FAST)
        else:
            picture.save(content, "JPEG", quality=self.quality, subsampling=0)
        return content.getvalue()
