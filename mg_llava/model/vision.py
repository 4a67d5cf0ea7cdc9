"""The vision side: encoders, fusion, projector and object encoder as one part that turns pictures into tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import nn

from mg_llava.model.encoders import ClipEncoder, OpenClipConvNeXt
from mg_llava.pictures.frames import FrameSize, frame_size, sides, size_words
from mg_llava.pictures.normalize import PixelNormalizer
from mg_llava.pictures.pooling import FramePooling, ImageTokens
from xtuner.errors import XTunerError
from xtuner.model.layers import idle_weights, zero_of
from xtuner.model.meta import in_meta_init
from xtuner.registry import build

ENCODERS = ("low_res_encoder", "high_res_encoder")
CONNECTORS = ("fusion", "projector", "object_encoder")


class VisionSide(nn.Module):
    """Pictures and boxes to what the language model reads; training, generation, export and vLLM all run this one.

    1. low-resolution encoder: (I, 3, s, s) → image tokens (I, V, C);
    2. high-resolution encoder: (I, 3, S, S) → stage maps (I, C_i, H_i, H_i);
    3. fusion, if there is one, of the last stage map into the image tokens;
    4. projector: image tokens to the language model's width, (I, V, D);
    5. object encoder: one token per box from all stage maps, (ΣN, D).

    Args:
        low_res_encoder, projector, high_res_encoder, fusion, object_encoder: nodes or built parts. Sizes are passed on
            at build: fusion reads the encoders' channels, projector and object encoder also the width.
        width: D, of the language model.
        frame_pooling: node of or built `FramePooling`, of videos' frames; None = they keep all their tokens.

    Attributes:
        image_tokens: V, and image tokens of a frame of a video.
        trained: encoders whose gradients are wanted; the others run under no_grad.
        num_image_tokens: V. image_size: S (or height and width), or s without a high-resolution encoder.
        low_res_size: s.
        with_objects: whether boxes become object tokens.

    Raises:
        XTunerError: parts that do not fit together or are half given.
    """

    def __init__(
        self,
        low_res_encoder: Mapping[str, Any] | nn.Module,
        projector: Mapping[str, Any] | nn.Module,
        width: int,
        high_res_encoder: Mapping[str, Any] | nn.Module | None = None,
        fusion: Mapping[str, Any] | nn.Module | None = None,
        object_encoder: Mapping[str, Any] | nn.Module | None = None,
        frame_pooling: Mapping[str, Any] | FramePooling | None = None,
    ) -> None:
        super().__init__()
        self.low_res_encoder = build(low_res_encoder)
        self.high_res_encoder = build(high_res_encoder)
        low, high = self.low_res_encoder, self.high_res_encoder
        check_parts(low, high, fusion, object_encoder)
        self.fusion, self.object_encoder = None, None
        if high is not None:
            self.fusion = build(fusion, low_channels=low.channels, high_channels=high.channels[-1])
            self.object_encoder = build(
                object_encoder, in_channels=sum(high.channels), out_channels=width, image_size=high.image_size
            )
        token_channels = low.channels if self.fusion is None else self.fusion.out_channels
        self.projector = build(projector, in_channels=token_channels, out_channels=width)
        self.trained: frozenset[str] = frozenset()
        self._idle: dict[str, list[nn.Parameter]] = {}
        self.num_image_tokens: int = low.num_tokens
        self.frame_pooling: FramePooling = build(frame_pooling) or FramePooling()
        self.image_tokens = ImageTokens(low.num_tokens, self.frame_pooling.num_tokens(low.grid))
        self.low_res_size: FrameSize = low.image_size
        self.image_size: FrameSize = low.image_size if high is None else high.image_size
        self.with_objects = self.object_encoder is not None

    def set_trained(self, encoders: Iterable[str]) -> None:
        """Says which encoders' gradients are wanted from now on, after they have been given to their weights."""
        self.trained = frozenset(encoders)
        self._idle.clear()

    def make_normalizer(self) -> PixelNormalizer:
        """Returns what makes the encoders' pixels: each one's own statistics, the low view by the pair."""
        if in_meta_init():
            # nothing is read, and the statistics change no shape
            return PixelNormalizer()
        low, high = self.low_res_encoder, self.high_res_encoder
        published = isinstance(low, ClipEncoder) and isinstance(high, OpenClipConvNeXt)
        # a part of somebody's own that says nothing of its pixels gets those of the low-resolution encoder
        return PixelNormalizer.of_encoders(low.statistics, getattr(high, "statistics", None), published)

    def parts(self) -> dict[str, nn.Module]:
        """Returns the parts that there are, by name."""
        return {name: part for name in (*ENCODERS, *CONNECTORS) if (part := getattr(self, name)) is not None}

    def encode(
        self,
        high_pixels: torch.Tensor,
        low_pixels: torch.Tensor,
        boxes: Sequence[torch.Tensor],
        blank_picture: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Encodes I normalised pictures; I may be 0.

        Without pictures the encoders do not run unless `blank_picture` asks for it, but the trained parts get empty
        inputs, and trained encoders enter the result with weight zero: their gradients are then zero, not absent, so
        that ranks with and without pictures still exchange the same gradients.

        Args:
            high_pixels: (I, 3, S, S), of `PixelNormalizer`.
            low_pixels: (I, 3, s, s), likewise.
            boxes: I tensors (N, 4), xyxy in pixels of the S frame; left aside without an object encoder.
            blank_picture: run the encoders on a blank picture where there are none.

        Returns:
            Image tokens (I, V, D) and object tokens (ΣN, D), picture after picture.
        """
        count = len(low_pixels)
        if blank_picture and not count:
            low_pixels = low_pixels.new_zeros((1, *low_pixels.shape[1:]))
            high_pixels = high_pixels.new_zeros((1, *high_pixels.shape[1:]))
        low_tokens, stage_maps = self._encode_low(low_pixels), self._encode_high(high_pixels)
        fused = low_tokens if self.fusion is None else self.fusion(low_tokens, stage_maps[-1])
        image_tokens = self.projector(fused.to(next(self.projector.parameters()).dtype))
        if not count and "high_res_encoder" in self.trained:
            # where nothing fuses, no gradient would come back from a blank picture's maps
            image_tokens = image_tokens + 0 * sum(stage.sum() for stage in stage_maps)
        if self.object_encoder is None:
            return image_tokens[:count], image_tokens.new_zeros((0, image_tokens.shape[-1]))
        return image_tokens[:count], self.object_encoder([stage[:count] for stage in stage_maps], boxes)

    def pool(self, image_tokens: torch.Tensor, frames: Sequence[bool] = ()) -> list[torch.Tensor]:
        """Pools the tokens of videos' frames.

        Args:
            image_tokens: (I, V, D), of `encode`.
            frames: which of the I pictures are frames; empty = none.

        Returns:
            Pictures and frames in order, those of a kind in a row together: (n, V or V', D).
        """
        if not any(frames) or self.frame_pooling.side == 1:
            return [image_tokens]
        runs, start = [], 0
        for is_frame, run in groupby(frames):
            end = start + len(list(run))
            tokens = image_tokens[start:end]
            runs.append(self.frame_pooling(tokens, self.low_res_encoder.grid) if is_frame else tokens)
            start = end
        return runs

    def _encode_low(self, pixels: torch.Tensor) -> torch.Tensor:
        """Step 1, under no_grad unless the encoder is trained."""
        low = self.low_res_encoder
        trained = "low_res_encoder" in self.trained
        if not len(pixels):
            tokens = pixels.new_zeros((0, low.num_tokens, low.channels))
            return tokens + zero_of(low) if trained else tokens
        with torch.set_grad_enabled(trained and torch.is_grad_enabled()):
            (tokens,) = self._reach_all("low_res_encoder", [low(pixels)])
            return tokens

    def _encode_high(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """Step 2, under no_grad unless the encoder is trained."""
        high = self.high_res_encoder
        if high is None:
            return []
        trained = "high_res_encoder" in self.trained
        if len(pixels):
            with torch.set_grad_enabled(trained and torch.is_grad_enabled()):
                return self._reach_all("high_res_encoder", high(pixels))
        height, width = sides(high.image_size)
        sizes = zip(high.channels, high.strides, strict=True)
        maps = [pixels.new_zeros((0, channels, height // step, width // step)) for channels, step in sizes]
        return [stage + zero_of(high) for stage in maps] if trained else maps

    def _reach_all(self, name: str, outputs: list[torch.Tensor]) -> list[torch.Tensor]:
        """Returns an encoder's outputs, with the trained weights that they do not depend on added with weight zero."""
        if name not in self.trained or not torch.is_grad_enabled():
            return outputs
        if name not in self._idle:
            self._idle[name] = idle_weights(getattr(self, name), outputs)
        if not self._idle[name]:
            return outputs
        return [*outputs[:-1], outputs[-1] + 0 * sum(weight.sum() for weight in self._idle[name])]


def check_parts(low: Any, high: Any, fusion: Any, object_encoder: Any) -> None:
    """Checks that a model's vision parts belong together.

    Args:
        low, high: the built encoders; `high` may be None.
        fusion, object_encoder: nodes, built parts or None.

    Raises:
        XTunerError: a part without what feeds it, an encoder that nothing reads, or encoders of other grids.
    """
    if high is None:
        for name, part in (("fusion", fusion), ("object_encoder", object_encoder)):
            if part is not None:
                raise XTunerError(f"the model has a {name} but no high_res_encoder to feed it: give both or neither.")
        return
    if fusion is None and object_encoder is None:
        raise XTunerError(
            "the model has a high_res_encoder that nothing reads: give a fusion (ConvGateFusion for instance) or "
            "an object_encoder, or leave the high_res_encoder out."
        )
    if fusion is not None and low.grid != high.grid:
        sizes = [f"{part.grid[0]}x{part.grid[1]} ({size_words(part.image_size)} px" for part in (low, high)]
        raise XTunerError(
            f"the encoders' grids differ: low resolution {sizes[0]}), high resolution {sizes[1]} at stride "
            f"{high.strides[-1]}): set image_size_aux to {_fitting_size(low.grid, high.strides[-1])}."
        )


def _fitting_size(grid: tuple[int, int], stride: int) -> str:
    """Words for the high-resolution picture whose last map has `grid`."""
    size = frame_size([cells * stride for cells in grid])
    return str(size if isinstance(size, int) else list(size))
