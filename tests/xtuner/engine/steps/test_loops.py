"""Mistakes that a loader's worker finds reach the user as one message."""

from __future__ import annotations

import pytest
from torch.utils.data import DataLoader

from xtuner.engine.steps.loops import _take
from xtuner.errors import XTunerError


class Faulty:
    """A data set whose first sample does not decode."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        try:
            raise OSError("cut off")
        except OSError as error:
            raise XTunerError("sample 'one': found a, expected b") from error


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_workers_message_comes_without_its_traceback(num_workers: int) -> None:
    with pytest.raises(XTunerError) as caught:
        _take(iter(DataLoader(Faulty(), num_workers=num_workers)), 1)
    assert str(caught.value) == "sample 'one': found a, expected b"
