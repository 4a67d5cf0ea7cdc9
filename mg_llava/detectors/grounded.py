"""Detectors that read the names with the picture: Grounding-DINO and its relatives, OmDet-Turbo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from mg_llava.boxes.selection import PictureBoxes, no_boxes
from mg_llava.detectors.base import in_float32, load, load_model, read_vocabulary, sizes_of, to_picture_boxes


@dataclass(eq=False)
class _ByChunks:
    """Looks for a long vocabulary part by part, since these models take so many names at a time."""

    name_or_path: str
    vocabulary: str | None = None
    threshold: float = 0.25
    max_boxes: int | None = None
    dtype: str = "auto"
    device: torch.device | str | None = None

    def __post_init__(self) -> None:
        from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

        self.names = read_vocabulary(self.vocabulary)
        self.model: Any = load_model(AutoModelForZeroShotObjectDetection, self.name_or_path, self.dtype, self.device)
        self.processor: Any = load(AutoProcessor, self.name_or_path)

    @torch.inference_mode()
    def __call__(self, pictures: Sequence[Image.Image], keys: Sequence[str] | None = None) -> list[PictureBoxes]:
        """See `Detector`."""
        if not pictures:
            return []
        merged = [no_boxes() for _ in pictures]
        for names in self.chunks():
            results = self.find(list(pictures), names)
            for number, (result, picture) in enumerate(zip(results, pictures, strict=True)):
                found = to_picture_boxes(result["boxes"], result["text_labels"], result["scores"], picture.size)
                merged[number] = _join(
                    merged[number], found.take(np.array([bool(label) for label in found.labels], bool))
                )
        return [
            to_picture_boxes(found.boxes, found.labels, found.scores, picture.size, self.max_boxes)
            for found, picture in zip(merged, pictures, strict=True)
        ]

    def chunks(self) -> list[list[str]]:
        """Returns the vocabulary in parts that the model takes at once."""
        raise NotImplementedError

    def find(self, pictures: list[Image.Image], names: list[str]) -> list[dict[str, Any]]:
        """Returns the library's post-processed results for a part of the vocabulary."""
        raise NotImplementedError

    def _inputs(self, **arguments: Any) -> Any:
        inputs = self.processor(return_tensors="pt", **arguments).to(self.model.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        return inputs


@dataclass(eq=False)
class GroundingDinoDetector(_ByChunks):
    """Grounding-DINO (arXiv 2303.05499), MM-Grounding-DINO, LLMDet and others behind the same classes of transformers.

    Args:
        name_or_path: folder or hub name, e.g. IDEA-Research/grounding-dino-base.
        vocabulary: file of names, see `read_vocabulary`; None = the shipped everyday objects.
        threshold: least score of a box.
        max_boxes: most boxes of a picture; None = all.
        dtype: ``auto``, ``bfloat16``, ``float16`` or ``float32``.
        device: where it computes; None = the CPU.
        text_threshold: least score of a word to be in a box's label.

    Raises:
        XTunerError: the checkpoint or the vocabulary cannot be read.
    """

    text_threshold: float = 0.25

    def chunks(self) -> list[list[str]]:
        """Returns parts whose text fits the model's length, names never cut."""
        room = int(self.model.config.max_text_len) - 2
        parts: list[list[str]] = []
        used = room
        for name in self.names:
            size = len(self.processor.tokenizer(f"{name}.", add_special_tokens=False)["input_ids"])
            if not parts or used + size > room:
                parts.append([])
                used = 0
            parts[-1].append(name)
            used += size
        return parts

    def find(self, pictures: list[Image.Image], names: list[str]) -> list[dict[str, Any]]:
        """See `_ByChunks`."""
        text = " ".join(f"{name}." for name in names)
        inputs = self._inputs(images=pictures, text=[text] * len(pictures))
        outputs = in_float32(self.model(**inputs))
        return self.processor.post_process_grounded_object_detection(
            outputs,
            inputs["input_ids"],
            threshold=self.threshold,
            text_threshold=self.text_threshold,
            target_sizes=sizes_of(pictures),
        )


@dataclass(eq=False)
class OmdetTurboDetector(_ByChunks):
    """OmDet-Turbo (arXiv 2403.06892).

    Args:
        name_or_path: folder or hub name, e.g. omlab/omdet-turbo-swin-tiny-hf.
        vocabulary, threshold, max_boxes, dtype, device: as of `GroundingDinoDetector`.
        names_at_once: part of the vocabulary that is looked for together.
        nms_threshold: of the library's non-maximum suppression.

    Raises:
        XTunerError: the checkpoint or the vocabulary cannot be read.
    """

    threshold: float = 0.3
    names_at_once: int = 100
    nms_threshold: float = 0.5

    def chunks(self) -> list[list[str]]:
        """Returns parts of `names_at_once`."""
        step = self.names_at_once
        return [self.names[start : start + step] for start in range(0, len(self.names), step)]

    def find(self, pictures: list[Image.Image], names: list[str]) -> list[dict[str, Any]]:
        """See `_ByChunks`."""
        labels = [names] * len(pictures)
        outputs = in_float32(self.model(**self._inputs(images=pictures, text=labels)))
        return self.processor.post_process_grounded_object_detection(
            outputs,
            text_labels=labels,
            threshold=self.threshold,
            nms_threshold=self.nms_threshold,
            target_sizes=sizes_of(pictures),
        )


def _join(first: PictureBoxes, second: PictureBoxes) -> PictureBoxes:
    return PictureBoxes(
        np.concatenate([first.boxes, second.boxes]),
        first.labels + second.labels,
        np.concatenate([first.scores, second.scores]),
    )
