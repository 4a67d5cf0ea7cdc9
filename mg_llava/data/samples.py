"""Prepared rows to training samples: ids, 8-bit pictures, boxes; and samples to batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from mg_llava.boxes.selection import PictureBoxes
from mg_llava.boxes.store import other_size_message
from mg_llava.data.box_columns import PreparedBoxes, keep_best, object_room, read_boxes
from mg_llava.data.prepared_sources import SampleMaker
from mg_llava.pictures.frames import sides
from mg_llava.videos.files import FrameFiles
from xtuner.data.batches.collate import collate
from xtuner.data.store.prepared import PreparedRow
from xtuner.errors import SampleError, XTunerError


class SampleReader:
    """Makes samples of prepared rows, and batches of samples.

    Args:
        maker: what the rows were made with.
        num_sources: of the data.
    """

    def __init__(self, maker: SampleMaker, num_sources: int = 1) -> None:
        self.maker = maker
        self.image_processor = maker.processor
        self.num_sources = num_sources

    def collate(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Joins B samples.

        Returns:
            ``input_ids``, ``labels``, ``attention_mask`` (B, T) and ``sample_ids`` as
            `xtuner.data.batches.collate.collate`; ``pixel_values`` (I, 3, S, S) uint8: all pictures in order of
            appearance, I may be 0; ``boxes``: I tensors (N, 4); ``bad_samples`` of all; ``sources`` (B,), numbers of
            the sources, where there are several, and their ``num_sources``; ``image_tokens``, see `ImageTokens`.
        """
        batch = collate(samples, self.maker.tokenizer.pad_token_id)
        # joined as they lie in memory, colours innermost: a plain copy
        pixels = torch.cat([sample["pixel_values"].permute(0, 2, 3, 1) for sample in samples])
        batch["pixel_values"] = pixels.permute(0, 3, 1, 2)
        batch["boxes"] = [boxes for sample in samples for boxes in sample["boxes"]]
        batch["bad_samples"] = [bad for sample in samples for bad in sample["bad_samples"]]
        batch["image_tokens"] = self.image_processor.image_tokens
        if self.num_sources > 1:
            batch["sources"] = torch.tensor([sample["source"] for sample in samples])
            batch["num_sources"] = self.num_sources
        return batch

    def sample(self, row: PreparedRow, files: FrameFiles) -> dict[str, Any]:
        """Returns the sample of a row, see `MGLLaVADataset`, without ``source`` and ``bad_samples``."""
        pixels, found, _ = self.pictures(row, files)
        size = sides(self.image_processor.image_size)
        stacked = torch.stack(pixels) if pixels else torch.zeros((0, *size, 3), dtype=torch.uint8)
        return {
            "sample_id": row["id"],
            "input_ids": torch.from_numpy(row.numbers("input_ids").astype(np.int64)),
            "labels": torch.from_numpy(row.numbers("labels").astype(np.int64)),
            "pixel_values": stacked.permute(0, 3, 1, 2),
            "boxes": [torch.from_numpy(picture.boxes) for picture in found],
        }

    def pictures(
        self, row: PreparedRow, files: FrameFiles, with_labels: bool = False
    ) -> tuple[list[torch.Tensor], list[PictureBoxes], list[tuple[int, int]]]:
        """Returns pixels (S, S, 3), boxes in the S x S frame, and (width, height) of a sample's pictures."""
        paths: list[str] = row["images"]
        pixels: list[torch.Tensor] = []
        found: list[PictureBoxes] = []
        sizes: list[tuple[int, int]] = []
        images = files.images(paths, self.image_processor.open)
        for path, image, boxes in zip(paths, images, read_boxes(row, with_labels), strict=True):
            found.append(self._mapped(boxes, path, image.size))
            pixels.append(self.image_processor.pixels(image).permute(1, 2, 0))
            sizes.append(image.size)
        num_tokens = self.image_processor.image_tokens.count(row.numbers("input_ids").tolist())
        room = object_room(self.maker.context_length, num_tokens)
        if room is not None and sum(len(picture.labels) for picture in found) > room:
            found = keep_best(found, room)
        return pixels, found, sizes

    def _mapped(self, boxes: PreparedBoxes, path: str, size: tuple[int, int]) -> PictureBoxes:
        """The boxes of a picture of `size` in the S x S frame."""
        if boxes.size is None:
            mapped, kept = self.image_processor.map_boxes(boxes.found.boxes, size)
            return boxes.found.take(kept)._replace(boxes=mapped)
        if boxes.size != size:
            raise SampleError("boxes of another size", other_size_message(path, size, boxes.size, "its box record"))
        return boxes.found


def fault_of(error: Exception) -> tuple[str, str]:
    """Returns the kind of a sample's fault, by which they are counted, and a sentence."""
    if isinstance(error, XTunerError):
        return error.kind if isinstance(error, SampleError) else "other", str(error)
    if isinstance(error, MemoryError):
        return "out of memory", "there is not enough memory to read it."
    return "cannot be read", f"it cannot be read ({type(error).__name__}: {error})."
