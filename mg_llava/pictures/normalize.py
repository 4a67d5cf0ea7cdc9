"""8-bit pictures to the pixels that the two encoders take, on the device that holds the pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from mg_llava.pictures.frames import FrameSize, sides
from mg_llava.pictures.statistics import CLIP_MEAN, CLIP_STD, PixelStatistics
from xtuner.errors import XTunerError

LowView = Literal["normalized", "picture"]
_LARGEST = 255


class PixelNormalizer(nn.Module):
    """8-bit pictures to the two inputs of the encoders, each with its own encoder's statistics.

    pixels = (u8 / 255 − mean) / std per channel in float32, each step rounded as IEEE says, so that every device gives
    the same bits. The low-resolution view is made in one of two ways:

    - ``normalized``, of the published pair: the normalised high-resolution pixels, resized bilinearly without
      antialias. Both encoders then have one mean and deviation.
    - ``picture``: the 8-bit picture, resized by an antialiased bicubic filter and rounded to 8 bits as the encoder's
      own preprocessing does, then normalised with the low-resolution encoder's statistics.

    Holds no parameters and nothing in its state dict.

    Args:
        mean, std: of red, green, blue on the 0–1 scale, for the low-resolution encoder.
        high_mean, high_std: for the high-resolution encoder; None = the same.
        low_view: how the low-resolution view is made.

    Raises:
        XTunerError: two sets of statistics with the low-resolution view of normalised pixels.
    """

    constant_bits: torch.Tensor

    def __init__(
        self,
        mean: Sequence[float] = CLIP_MEAN,
        std: Sequence[float] = CLIP_STD,
        high_mean: Sequence[float] | None = None,
        high_std: Sequence[float] | None = None,
        low_view: LowView = "normalized",
    ) -> None:
        super().__init__()
        low = (tuple(mean), tuple(std))
        high = (tuple(mean if high_mean is None else high_mean), tuple(std if high_std is None else high_std))
        if low_view not in ("normalized", "picture") or (low_view == "normalized" and low != high):
            raise XTunerError(
                f"low_view is '{low_view}' with the statistics {low} and {high}: expected 'picture', or 'normalized' "
                "where both encoders have the same."
            )
        self.low_view = low_view
        self._low, self._high = low, high
        self._constants = np.array([[_LARGEST] * 3, *high, *low], np.float32)
        # kept as integers: a model that is cast to bfloat16 would cast floats with it
        bits = torch.from_numpy(self._constants.view(np.int32))
        self.register_buffer("constant_bits", bits, persistent=False)

    def reset_constants(self) -> None:
        """Fills the table again, for loaders that make modules without memory and fill only what files hold."""
        self.constant_bits.copy_(torch.from_numpy(self._constants.view(np.int32)))

    @classmethod
    def of_encoders(cls, low: PixelStatistics, high: PixelStatistics | None, published: bool) -> PixelNormalizer:
        """Makes the normalizer of two encoders.

        Args:
            low, high: their statistics; without a high-resolution encoder pictures already have the low one's size.
            published: they are the published pair, whose low-resolution view is made of normalised pixels.
        """
        if high is None or (published and low.scale == high.scale):
            return cls(low.mean, low.std)
        return cls(low.mean, low.std, high.mean, high.std, low_view="picture")

    def settings(self) -> dict[str, Any]:
        """Returns the arguments that make this normalizer again; only ``mean`` and ``std`` for the published pair."""
        values: dict[str, Any] = {"mean": list(self._low[0]), "std": list(self._low[1])}
        if self.low_view == "normalized":
            return values
        return {
            **values,
            "high_mean": list(self._high[0]),
            "high_std": list(self._high[1]),
            "low_view": self.low_view,
        }

    def forward(self, pixels: torch.Tensor, low_res_size: FrameSize) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalises and resizes I pictures.

        Args:
            pixels: (I, 3, S, S) uint8 RGB (any height and width); I may be 0.
            low_res_size: side s of the low-resolution pictures, or their (height, width).

        Returns:
            high (I, 3, S, S) and low (I, 3, s, s), both float32 whatever the model's type.
        """
        # 255 as a tensor: by a plain number a GPU would multiply with the rounded 1/255, which differs
        scale, *constants = self.constant_bits.view(torch.float32).view(5, 1, 3, 1, 1)
        # workers hand pictures over as Pillow has them, colours innermost
        picture = pixels.contiguous().float()
        size = sides(low_res_size)
        low = None
        if not len(pixels):
            low = picture.new_zeros((0, 3, *size))
        elif self.low_view == "picture":
            view = functional.interpolate(picture, size=size, mode="bicubic", align_corners=False, antialias=True)
            low = view.round_().clamp_(0, _LARGEST).div_(scale).sub_(constants[2]).div_(constants[3])
        high = picture.div_(scale).sub_(constants[0]).div_(constants[1])
        if low is None:
            low = functional.interpolate(high, size=size, mode="bilinear", align_corners=False)
        return high, low
