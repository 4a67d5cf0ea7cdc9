"""How many tokens a picture takes in the language model, and fewer of them for the frames of videos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xtuner.constants import FRAME_TOKEN_INDEX, IMAGE_TOKEN_INDEX
from xtuner.errors import XTunerError, counted

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class FramePooling:
    """Joins the image tokens of a video's frames, square by square, to their mean; pictures keep all of theirs.

    It has no weights and follows the projector. Where the grid of tokens is no multiple of `side`, the squares at its
    right and lower edge are smaller: means of what there is.

    Args:
        side: of a square, in tokens: 2 makes one token of 2 x 2; 1 = every token stays.

    Raises:
        XTunerError: `side` is no whole number above zero.
    """

    side: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.side, int) or isinstance(self.side, bool) or self.side < 1:
            raise XTunerError(
                f"frame_pooling.side={self.side!r}: expected a whole number above zero, 2 for squares of 2 x 2 tokens."
            )

    def num_tokens(self, grid: tuple[int, int]) -> int:
        """Returns the tokens of a frame.

        Args:
            grid: (rows, columns) of image tokens before.

        Raises:
            XTunerError: the grid is smaller than a square.
        """
        if self.side > min(grid):
            raise XTunerError(
                f"frame_pooling.side={self.side}, but a frame has only {grid[0]} x {grid[1]} image tokens: expected at "
                f"most {min(grid)}."
            )
        rows, columns = (-(-side // self.side) for side in grid)
        return rows * columns

    def __call__(self, tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """Pools F frames: (F, V, D) → (F, V', D), row after row; the mean is taken in float32.

        Args:
            tokens: image tokens, row after row.
            grid: (rows, columns), V of them.

        Examples:
            >>> import torch
            >>> tokens = torch.arange(9.0).view(1, 9, 1)
            >>> FramePooling(2)(tokens, (3, 3)).flatten().tolist()
            [2.0, 3.5, 6.5, 8.0]
        """
        from torch.nn import functional

        if self.side == 1:
            return tokens
        maps = tokens.float().transpose(1, 2).unflatten(2, grid)
        pooled = functional.avg_pool2d(maps, self.side, ceil_mode=True, count_include_pad=False)
        return pooled.flatten(2).transpose(1, 2).to(tokens.dtype)


@dataclass(frozen=True)
class ImageTokens:
    """How many image tokens there are; object tokens are counted apart.

    Attributes:
        picture: V, of a picture.
        frame: of a frame of a video.
    """

    picture: int
    frame: int

    def num_images(self, pictures: int, frames: int) -> int:
        """Returns the image tokens of so many pictures, and frames beside them."""
        return pictures * self.picture + frames * self.frame

    def count(self, input_ids: Sequence[int]) -> int:
        """Returns how many tokens become of ids in which each picture or frame is one."""
        pictures, frames = (input_ids.count(place) for place in (IMAGE_TOKEN_INDEX, FRAME_TOKEN_INDEX))
        return len(input_ids) - pictures - frames + self.num_images(pictures, frames)

    def words(self, pictures: int, frames: int) -> str:
        """Returns how a message has them: ``2 pictures of 576``, ``8 frames of 144``."""
        told = [f"{counted(pictures, 'pictures')} of {self.picture}"] if pictures or not frames else []
        return ", ".join([*told, *([f"{counted(frames, 'frames')} of {self.frame}"] if frames else [])])
