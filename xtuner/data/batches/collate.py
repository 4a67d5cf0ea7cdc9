"""Samples to one padded batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from xtuner.constants import IGNORE_INDEX
from xtuner.errors import XTunerError


def collate(samples: Sequence[Mapping[str, Any]], pad_id: int) -> dict[str, Any]:
    """Pads the text of `samples` on the right.

    Args:
        samples: B samples with ``input_ids`` and ``labels`` (equally long sequences of ids) and
            ``sample_id``.
        pad_id: id that fills ``input_ids``; labels are filled with `IGNORE_INDEX`.

    Returns:
        ``input_ids`` (B, T) int64, ``labels`` (B, T) int64, ``attention_mask`` (B, T) bool (True = a token
        of the sample), ``sample_ids`` list of B.

    Raises:
        XTunerError: no sample, or one whose ids and labels differ in number.
    """
    if not samples:
        raise XTunerError("a batch has no samples: batch_size must be at least 1.")
    lengths = [len(sample["input_ids"]) for sample in samples]
    shape = (len(samples), max(lengths))
    input_ids = torch.full(shape, pad_id, dtype=torch.long)
    labels = torch.full(shape, IGNORE_INDEX, dtype=torch.long)
    for row, (sample, length) in enumerate(zip(samples, lengths, strict=True)):
        if len(sample["labels"]) != length:
            raise XTunerError(
                f"sample '{sample['sample_id']}' has {length} input_ids but {len(sample['labels'])} labels: "
                "they must match."
            )
        input_ids[row, :length] = torch.as_tensor(sample["input_ids"])
        labels[row, :length] = torch.as_tensor(sample["labels"])
    attention_mask = torch.arange(shape[1]) < torch.tensor(lengths).unsqueeze(1)
    return {
        "input_ids": input_ids,
        "labels": labels,
        "attention_mask": attention_mask,
        "sample_ids": [sample["sample_id"] for sample in samples],
    }
