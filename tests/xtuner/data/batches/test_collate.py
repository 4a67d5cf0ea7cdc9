from __future__ import annotations

import pytest
import torch

from xtuner.constants import IGNORE_INDEX
from xtuner.data.batches.collate import collate
from xtuner.errors import XTunerError


def test_pads_on_the_right() -> None:
    batch = collate(
        [
            {"sample_id": "a", "input_ids": [5, 6, 7], "labels": [IGNORE_INDEX, 6, 7]},
            {"sample_id": "b", "input_ids": torch.tensor([8]), "labels": torch.tensor([8])},
        ],
        pad_id=3,
    )
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 3, 3]]
    assert batch["labels"].tolist() == [[IGNORE_INDEX, 6, 7], [8, IGNORE_INDEX, IGNORE_INDEX]]
    assert batch["attention_mask"].tolist() == [[True, True, True], [True, False, False]]
    assert batch["sample_ids"] == ["a", "b"]
    assert batch["input_ids"].dtype == batch["labels"].dtype == torch.long


def test_faults() -> None:
    with pytest.raises(XTunerError, match="no samples"):
        collate([], pad_id=0)
    with pytest.raises(XTunerError, match="sample 'a' has 1 input_ids but 2 labels"):
        collate([{"sample_id": "a", "input_ids": [1], "labels": [1, 2]}], pad_id=0)
