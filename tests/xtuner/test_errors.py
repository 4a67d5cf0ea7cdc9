"""Numbers with what they count."""

from __future__ import annotations

import pytest

from xtuner.errors import counted


@pytest.mark.parametrize(
    ("count", "noun", "told"),
    [
        (0, "pictures", "0 pictures"),
        (1, "pictures without boxes", "1 picture without boxes"),
        (1, "inverted boxes left out", "1 inverted box left out"),
        (1, "entries", "1 entry"),
        (1, "cut off: samples", "1 cut off: sample"),
        (1, "kept", "1 kept"),
        (12345, "steps", "12,345 steps"),
    ],
)
def test_counted(count: int, noun: str, told: str) -> None:
    assert counted(count, noun) == told
