"""Numbers of a data file on hand-worked examples."""

from __future__ import annotations

import numpy as np

from mg_llava.data.statistics import DataStatistics
from xtuner.data.text.conversations import Conversation
from xtuner.data.text.templates import Turn
from xtuner.data.text.tokenizing import Encoded


def talk(name: str, *answers: str, images: tuple[str, ...] = ("a.png",), index: int = 0) -> Conversation:
    return Conversation(name, images, tuple(Turn("<image>what?", answer) for answer in answers), index)


def test_records() -> None:
    told = DataStatistics()
    for one in (
        talk("x", "a cat"),
        talk("x", "a cat", index=1),
        talk("y", "", "one two three four"),
        talk("#4", images=("b.png",)),
        talk("#5", "a cat", images=()),
    ):
        told.add_record(one)
    told.add_faults(2)
    told.add_missing({"b.png"})
    rows = dict(told.rows())
    assert rows["records"] == "7, 1 of them without an answer"
    assert rows["ids given again"] == "1, e.g. 'x' 2 times"
    assert rows["records given again"].startswith("1 ")
    assert rows["turns"] == "5, 0.7 a record"
    assert rows["words of an answer"] == "mean 2.0, 50 % 2, 90 % 3, 99 % 4, largest 4"
    assert rows["empty answers"] == "1 (20.0%)"
    assert rows["pictures"] == (
        "2 files, 1 of them missing or unreadable, 1 in several records; 1 record without a picture"
    )


def test_boxes() -> None:
    told = DataStatistics(num_cells=4)
    told.add_boxes(np.array([[0, 0, 10, 10], [0, 0, 100, 50]], np.float32), ["cat", "dog"], (100, 100))
    told.add_boxes(np.array([[5, 5, 1, 1]], np.float32), ["cat"], (100, 100))
    told.add_boxes(np.zeros((0, 4), np.float32), [], None)
    rows = dict(told.rows())
    assert rows["boxes of a picture"].startswith("mean 1.0, 50 % 1") and "3 in all" in rows["boxes of a picture"]
    # areas: 1 %, 50 %, none (inverted); a cell is 25 %
    assert rows["areas of boxes"] == (
        "median 1.00% of the picture; 66.7% are smaller than one of the 4 cells of the image tokens"
    )
    assert rows["labels"] == "2, most frequent: cat 2, dog 1"


def test_tokens() -> None:
    told = DataStatistics(max_length=10)
    told.add_tokens(Encoded([1] * 8, [1] * 8))
    told.add_tokens(Encoded([1] * 10, [1] * 10, num_truncated=5, num_truncated_labels=3))
    rows = dict(told.rows())
    assert rows["text tokens"].startswith("mean 11.5") and "largest 15" in rows["text tokens"]
    assert rows["cut at 10"] == "1 record (50.0%), 3 tokens of answers lost"


def test_nothing() -> None:
    assert dict(DataStatistics().rows())["records"] == "0, 0 of them without an answer"
