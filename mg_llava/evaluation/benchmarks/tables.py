"""VLMEvalKit's tables of questions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mg_llava.evaluation.benchmarks.base import Benchmark, unique_ids
from mg_llava.evaluation.benchmarks.files import read_table, require
from mg_llava.evaluation.benchmarks.labels import read_list
from mg_llava.evaluation.benchmarks.pictures import pictures_in_place
from mg_llava.evaluation.benchmarks.records import Picture, Question
from xtuner.errors import XTunerError, counted
from xtuner.log import get_logger

_WHOLE_AS_DECIMAL = re.compile(r"\s*\d+\.0+\s*")
_LONGEST_REFERENCE = 64
"""An image cell this short is the index of the row that holds the picture."""


def _split_name(split: str | None) -> str:
    name = (split or "").strip().lower()
    return {"val": "validation"}.get(name, name)


def _with_whole_indices(row: dict[str, str]) -> dict[str, str]:
    """The row with "7" where a program that took the column for numbers wrote "7.0"."""
    for column in ("index", "image"):
        if _WHOLE_AS_DECIMAL.fullmatch(row.get(column, "")):
            row[column] = row[column].split(".")[0]
    return row


@dataclass(kw_only=True, eq=False)
class TableBenchmark(Benchmark):
    """A TSV of ``index, image?, image_path?, question, split?, …``.

    `image` is base64 text, a Python list of such texts, or the index of the row that has it; `image_path` (a path or a
    list of paths) with an `image_folder` stands in for it. Boxes are found by the row's index, by that of the row
    whose picture it is, and for a row of several pictures by ``<index>_1``, ``<index>_2``, ….

    Args:
        split: ask only the rows whose `split` is this, whatever the case ("val" is "validation"); None = all.
        (others): see `Benchmark`.
    """

    split: str | None = None

    def rows(self, needed: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str], tuple[Picture, ...]]]:
        """Yields (unique id, cells that are not empty, pictures) of each row; rows without any cell are left out.

        Args:
            needed: columns that no row may leave empty; ``index`` must be among them.

        Raises:
            XTunerError: a row lacks one, refers to a picture that is not there, or no row is of the split.
        """
        rows = [(f"row {number}", row) for number, row in enumerate(read_table(self.data_path), start=1)]
        empty = [where for where, row in rows if not row]
        if empty:
            get_logger().warning(
                "'%s': left out %s, first %s", self.data_path, counted(len(empty), "empty rows"), empty[0]
            )
        rows = [(where, _with_whole_indices(row)) for where, row in rows if row]
        require(rows, needed, self.data_path)
        cells = {row["index"]: row["image"] for _, row in rows if len(row.get("image", "")) > _LONGEST_REFERENCE}
        chosen = [
            row for _, row in rows if self.split is None or _split_name(row.get("split")) == _split_name(self.split)
        ]
        if rows and not chosen:
            found = ", ".join(sorted({row.get("split", "none") for _, row in rows}))
            raise XTunerError(f"'{self.data_path}' has no row of split '{self.split}'; it has: {found}.")
        for unique_id, row in zip(unique_ids(row["index"] for row in chosen), chosen, strict=True):
            yield unique_id, row, self._pictures(row, cells)

    def question(self, place: tuple[str, dict[str, str], tuple[Picture, ...]], answer: Any, *axes: str) -> Question:
        """Returns the question of a row of `rows`, its answer as given and grouped by the columns `axes`."""
        unique_id, row, pictures = place
        groups = {axis: row[axis] for axis in axes if axis in row}
        return Question(unique_id, row["question"], pictures, row["index"], answer, groups=groups)

    def _pictures(self, row: dict[str, str], cells: dict[str, str]) -> tuple[Picture, ...]:
        image = row.get("image")
        if "image_path" in row and self.image_folder is not None:
            return tuple(map(self.picture, read_list(row["image_path"])))
        if image is None:
            return ()
        also: tuple[str, ...] = ()
        if len(image) <= _LONGEST_REFERENCE:
            if image not in cells:
                raise XTunerError(
                    f"'{self.data_path}' row with index {row['index']}: its image is that of row {image}, which holds "
                    "none. Download the file again."
                )
            also, image = (image,), cells[image]
        encoded, keys = read_list(image), read_list(row.get("image_path", ""))
        if len(encoded) == 1:
            return (Picture(key=keys[0], encoded=encoded[0], box_ids=also),)
        keys = keys if len(keys) == len(encoded) else [""] * len(encoded)
        return tuple(
            Picture(key=key, encoded=text, box_ids=(f"{row['index']}_{number}",))
            for number, (key, text) in enumerate(zip(keys, encoded, strict=True), start=1)
        )

    def place_pictures(self, question: Question, words: str) -> tuple[str, list[Picture]]:
        """Returns the words with ``<image>`` where they say ``<image 1>`` …, else in front, and the pictures."""
        return pictures_in_place(words, question.pictures)
