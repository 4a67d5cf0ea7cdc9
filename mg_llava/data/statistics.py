"""What a data file holds, in numbers to look at before training: records, answers, pictures, boxes, tokens."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np

from xtuner.data.text.conversations import Conversation
from xtuner.data.text.tokenizing import Encoded
from xtuner.errors import counted

_PERCENTILES = (50, 90, 99, 100)
_LABELS = 10


class DataStatistics:
    """Counts of all of a config's data files, each record as often as the files hold it.

    Args:
        num_cells: of the grid of image tokens: a box smaller than a cell is smaller than what one token sees.
        max_length: text tokens of a sample from which on it is cut.
    """

    def __init__(self, num_cells: int | None = None, max_length: int | None = None) -> None:
        self.num_cells = num_cells
        self.max_length = max_length
        self._records = self._turns = self._unanswered = self._empty = self._without_picture = 0
        self._words = array("q")
        self._tokens = array("q")
        self._per_picture = array("q")
        self._shares = array("d")
        self._ids: Counter[str] = Counter()
        self._contents: Counter[bytes] = Counter()
        self._uses: Counter[str] = Counter()
        self._labels: Counter[str] = Counter()
        self._missing = self._cut = self._lost = 0

    def add_record(self, talk: Conversation) -> None:
        """Counts a record that could be read."""
        self._records += 1
        self._ids[talk.id] += not talk.id.startswith("#")
        content = repr((talk.images, talk.turns)).encode("utf-8", "backslashreplace")
        self._contents[hashlib.blake2b(content, digest_size=16).digest()] += 1
        self._unanswered += not talk.turns
        self._without_picture += not talk.images
        self._turns += len(talk.turns)
        for turn in talk.turns:
            words = len((turn.output or "").split())
            self._words.append(words)
            self._empty += words == 0
        self._uses.update(set(talk.images))

    def add_faults(self, count: int) -> None:
        """Counts records that could not be read."""
        self._records += count

    def add_tokens(self, encoded: Encoded) -> None:
        """Counts the text tokens of a record, as they are before `max_length`."""
        self._tokens.append(len(encoded.input_ids) + encoded.num_truncated)
        self._cut += encoded.num_truncated > 0
        self._lost += encoded.num_truncated_labels

    def add_missing(self, paths: Collection[str]) -> None:
        """Counts pictures that are not there or cannot be read."""
        self._missing += len(paths)

    def add_boxes(self, boxes: np.ndarray, labels: Sequence[str], size: tuple[int, int] | None) -> None:
        """Counts the boxes of a picture: (N, 4) xyxy in its pixels, of (width, height) `size` where that is known."""
        self._per_picture.append(len(boxes))
        self._labels.update(labels)
        if size is not None and len(boxes):
            sides = np.clip(boxes[:, 2:] - boxes[:, :2], 0, None)
            self._shares.extend((sides.prod(axis=1) / (size[0] * size[1])).tolist())

    def rows(self) -> list[tuple[str, str]]:
        """Returns names and values for a table; what there is nothing of is left out."""
        rows = [("records", f"{self._records:,}, {self._unanswered:,} of them without an answer")]
        again = {name: count for name, count in self._ids.items() if count > 1}
        if again:
            name, count = max(again.items(), key=lambda entry: entry[1])
            rows.append(("ids given again", f"{sum(again.values()) - len(again):,}, e.g. '{name}' {count:,} times"))
        whole = sum(self._contents.values()) - len(self._contents)
        rows.append(("records given again", f"{whole:,} with the same pictures and words as an earlier one"))
        if self._words:
            rows.append(("turns", f"{self._turns:,}, {self._turns / max(1, self._records):.1f} a record"))
            rows.append(("words of an answer", _spread(self._words)))
            rows.append(("empty answers", f"{self._empty:,} ({self._empty / len(self._words):.1%})"))
        if self._uses:
            shared = sum(count > 1 for count in self._uses.values())
            without = counted(self._without_picture, "records")
            told = f"{len(self._uses):,} files, {self._missing:,} of them missing or unreadable, {shared:,} in several"
            rows.append(("pictures", f"{told} records; {without} without a picture"))
        return [*rows, *self._box_rows(), *self._token_rows()]

    def _box_rows(self) -> list[tuple[str, str]]:
        if not self._per_picture:
            return []
        rows = [("boxes of a picture", f"{_spread(self._per_picture)}; {sum(self._per_picture):,} in all")]
        if self._shares:
            shares = np.frombuffer(self._shares)
            median = f"median {np.median(shares):.2%} of the picture"
            if self.num_cells:
                under = (shares < 1 / self.num_cells).mean()
                median += f"; {under:.1%} are smaller than one of the {self.num_cells} cells of the image tokens"
            rows.append(("areas of boxes", median))
        told = ", ".join(f"{label} {count:,}" for label, count in self._labels.most_common(_LABELS))
        return [*rows, ("labels", f"{len(self._labels):,}, most frequent: {told}")] if told else rows

    def _token_rows(self) -> list[tuple[str, str]]:
        if not self._tokens:
            return []
        rows = [("text tokens", f"{_spread(self._tokens)}; a picture counts as one")]
        if self.max_length is not None:
            share = self._cut / len(self._tokens)
            rows.append(
                (
                    f"cut at {self.max_length:,}",
                    f"{counted(self._cut, 'records')} ({share:.1%}), {self._lost:,} tokens of answers lost",
                )
            )
        return rows


def _spread(numbers: array[int]) -> str:
    values = np.frombuffer(numbers, dtype=np.int64)
    marks = zip(_PERCENTILES, np.percentile(values, _PERCENTILES), strict=True)
    told = ", ".join(f"{'largest' if mark == 100 else f'{mark} %'} {value:,.0f}" for mark, value in marks)
    return f"mean {values.mean():,.1f}, {told}"
