"""From a collated batch on the CPU to the model's arguments on the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from mmengine.model import BaseDataPreprocessor
from torch.nn import functional

from mg_llava.model.splice import SplicePlan, plan_splice
from mg_llava.pictures.frames import FrameSize, sides
from mg_llava.pictures.normalize import PixelNormalizer
from mg_llava.pictures.pooling import ImageTokens
from xtuner.constants import FRAME_TOKEN_INDEX, IGNORE_INDEX, PICTURE_INDICES
from xtuner.errors import XTunerError, counted


class BatchPreprocessor(BaseDataPreprocessor):
    """Plans the splice on the CPU, moves everything to the device, and normalises the pictures there.

    Args:
        normalizer: 8-bit pictures to pixels of both resolutions.
        image_size: side S of the pictures in a batch, in pixels, or (height, width).
        low_res_size: side s of the low-resolution encoder's input, likewise.
        image_tokens: V of a picture, and of a frame of a video.
        vocab_size: rows of the language model's embedding table.
        with_objects: whether boxes become object tokens; else a batch's boxes are left aside.
        pack: in training, join a batch's samples in one row instead of padding them; see `SplicePlan.packed`.
    """

    def __init__(
        self,
        normalizer: PixelNormalizer,
        image_size: FrameSize,
        low_res_size: FrameSize,
        image_tokens: ImageTokens,
        vocab_size: int,
        with_objects: bool,
        pack: bool = False,
    ) -> None:
        super().__init__(non_blocking=True)
        self.normalizer = normalizer
        self.image_size = image_size
        self.low_res_size = low_res_size
        self.image_tokens = image_tokens
        self.vocab_size = vocab_size
        self.with_objects = with_objects
        self.pack = pack

    @property
    def device(self) -> torch.device:
        """Where batches go: where the normalizer stands, also when a loader placed the parts one by one."""
        return self.normalizer.constant_bits.device

    def forward(self, data: Mapping[str, Any], training: bool = False, pad_left: bool = False) -> dict[str, Any]:
        """Prepares a batch for `MGLLaVA.forward`.

        Args:
            data: on the CPU: ``input_ids`` (B, T), where it has them ``labels`` and ``attention_mask`` (B,
                T), and ``pixel_values`` (I, 3, S, S) uint8 and ``boxes``, I tensors (N, 4) xyxy in pixels of
                the S frame, and ``sources`` (B,) with ``num_sources``, where there are several; ``image_tokens``,
                those that the lengths were counted with; other keys are left aside.
            training: packs the samples where `pack` is set; nothing else depends on it.
            pad_left: pads on the left, for generation.

        Returns:
            The plan's tensors by their names, ``high_pixels`` (I, 3, S, S), ``low_pixels`` (I, 3, s, s) and
            ``boxes``, all on the device; ``frames``, which pictures are frames of videos, where these take fewer
            tokens; in training on several sources ``target_sources`` (targets, K), 1 where a target belongs to a
            source.

        Raises:
            XTunerError: pictures of another size or number, ids beyond the vocabulary, or other ``image_tokens``.
        """
        self._check_counts(data.get("image_tokens"))
        input_ids = data["input_ids"]
        labels = data.get("labels")
        mask = data.get("attention_mask")
        pixels, boxes = self._pictures(data)
        self._check_ids(input_ids)
        plan = plan_splice(
            input_ids,
            torch.full_like(input_ids, IGNORE_INDEX) if labels is None else labels,
            torch.ones_like(input_ids, dtype=torch.bool) if mask is None else mask,
            self.image_tokens.picture,
            [len(box) for box in boxes],
            pad_left,
            self.image_tokens.frame,
        )
        sources = data.get("sources") if training else None
        extra = {} if sources is None else _target_sources(plan, sources, data["num_sources"])
        frames = {} if self.image_tokens.frame == self.image_tokens.picture else {"frames": _frames(input_ids, mask)}
        if self.pack and training:
            plan = plan.packed()
        batch = self.cast_data({field.name: getattr(plan, field.name) for field in fields(SplicePlan)})
        high_pixels, low_pixels = self.normalizer(self.cast_data(pixels), self.low_res_size)
        # one transfer for all boxes; the split makes views
        flat_boxes = self.cast_data(torch.cat([torch.zeros(0, 4), *boxes]))
        return {
            **batch,
            **self.cast_data(extra),
            **frames,
            "high_pixels": high_pixels,
            "low_pixels": low_pixels,
            "boxes": list(flat_boxes.split([len(box) for box in boxes])) if boxes else [],
        }

    def _pictures(self, data: Mapping[str, Any]) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
        size = sides(self.image_size)
        pixels = data.get("pixel_values")
        if pixels is None:
            pixels = torch.zeros((0, 3, *size), dtype=torch.uint8)
        self.check_pixels(pixels)
        boxes = data.get("boxes") if self.with_objects else None
        if boxes is None:
            boxes = [torch.zeros(0, 4) for _ in pixels]
        if len(boxes) != len(pixels):
            raise XTunerError(
                f"the batch has {counted(len(pixels), 'pictures')} but {counted(len(boxes), 'lists of boxes')}: give "
                "one list for each picture."
            )
        return pixels, boxes

    def check_pixels(self, pixels: torch.Tensor) -> None:
        """Checks that pictures are (I, 3, S, S) uint8.

        Raises:
            XTunerError: another size or type.
        """
        size = (3, *sides(self.image_size))
        if tuple(pixels.shape[1:]) != size or pixels.dtype != torch.uint8:
            raise XTunerError(
                f"the batch's pictures are {tuple(pixels.shape[1:])} {pixels.dtype}, but the model was built for "
                f"{size} torch.uint8: give the image processor and the encoder one image_size."
            )

    def _check_counts(self, counted_with: ImageTokens | None) -> None:
        if counted_with is not None and counted_with != self.image_tokens:
            raise XTunerError(
                f"the data count {counted_with.picture} tokens a picture and {counted_with.frame} a frame of a video, "
                f"but the model makes {self.image_tokens.picture} and {self.image_tokens.frame}: give the model and "
                "the image processor one encoder and one frame_pooling."
            )

    def _check_ids(self, input_ids: torch.Tensor) -> None:
        # on a GPU an id beyond the table ends the process without saying why
        highest = int(input_ids.max()) if input_ids.numel() else 0
        if highest >= self.vocab_size:
            raise XTunerError(
                f"the batch has the token id {highest}, but the language model's table has {self.vocab_size} rows: "
                "the tokenizer belongs to another model (settings llm_name_or_path, offline_processed_text_folder)."
            )


def _frames(input_ids: torch.Tensor, mask: torch.Tensor | None) -> list[bool]:
    """Which of a batch's pictures are frames of videos."""
    ids = input_ids if mask is None else input_ids[mask.bool()]
    places = ids[torch.isin(ids, torch.tensor(PICTURE_INDICES))]
    found: list[bool] = (places == FRAME_TOKEN_INDEX).tolist()
    return found


def _target_sources(plan: SplicePlan, sources: torch.Tensor, num_sources: int) -> dict[str, torch.Tensor]:
    """One-hot source of each target, from a plan that is not packed yet."""
    rows = plan.target_positions // plan.input_ids.shape[1]
    return {"target_sources": functional.one_hot(sources[rows], num_sources).float()}
