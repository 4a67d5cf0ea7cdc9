"""What a record takes: frames of videos count as pictures."""

from __future__ import annotations

from typing import Any

import pytest

from xtuner.data.text.conversations import parse_record
from xtuner.finetune.sizes import most_pictures


def talk(images: int, videos: int) -> Any:
    """A record with so many pictures and videos."""
    words = "<image>" * images + "<video>" * videos + " what"
    turns = [{"from": "human", "value": words}, {"from": "gpt", "value": "red"}]
    record = {"image": ["a.png"] * images, "video": ["a.mp4"] * videos, "conversations": turns}
    return parse_record(record, 0, videos=True)


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [(None, 17), ({"num_frames": None}, 17), ({"num_frames": 4}, 9), ({"fps": 1.0, "max_frames": 32}, 65)],
)
def test_the_most_pictures_of_a_record(sampling: dict[str, Any] | None, expected: int) -> None:
    assert most_pictures([talk(3, 0), talk(1, 2), talk(0, 0)], sampling) == expected


def test_text_counts_as_one_picture() -> None:
    assert most_pictures([talk(0, 0)], None) == 1 and most_pictures([talk(3, 0)], None) == 3
