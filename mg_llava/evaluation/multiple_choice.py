"""Multiple-choice questions in VLMEvalKit's table format: MMBench, SEED-Bench-Image, ScienceQA, AI2D."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mg_llava.evaluation.answers import option_letter
from mg_llava.evaluation.base import Benchmark, Picture, Prediction, Question, mean_by_groups, unique_ids
from mg_llava.evaluation.files import read_table, require
from xtuner.errors import XTunerError

_LETTERS = "ABCDEFGHI"
_CHINESE = re.compile(r"[\u4e00-\u9fff]")
_ROTATION = 1_000_000
"""MMBench numbers the rotations of question n as n, n + 1,000,000, n + 2,000,000, …"""
_LONGEST_REFERENCE = 64
"""An image cell this short is the index of the row that holds the picture."""


@dataclass(kw_only=True, eq=False)
class MultipleChoice(Benchmark):
    """A TSV of ``index, image, question, hint?, A…I, answer?, category?, l2-category?, split?``.

    `image` is base64 text or the index of the row that has it; `image_path` with an `image_folder` stands in for it.
    The answer is read by `answers.option_letter`.

    Args:
        circular: a question counts as right only if all its rotations in the file are (MMBench).
        (others): see `Benchmark`.
    """

    circular: bool = False

    def read_questions(self) -> list[Question]:
        """Reads the table; a row without index, question or options is named by its number."""
        rows = read_table(self.data_path)
        for number, row in enumerate(rows, start=1):
            require(row, ("index", "question", "A"), f"'{self.data_path}' row {number}")
        pictures = {row["index"]: row["image"] for row in rows if len(row.get("image", "")) > _LONGEST_REFERENCE}
        return [
            self._question(unique_id, row, pictures)
            for unique_id, row in zip(unique_ids(row["index"] for row in rows), rows, strict=True)
        ]

    def _question(self, unique_id: str, row: dict[str, str], pictures: dict[str, str]) -> Question:
        hint = row.get("hint")
        answer = row.get("answer")
        return Question(
            id=unique_id,
            text=f"{hint}\n{row['question']}" if hint else row["question"],
            picture=self._picture(row, pictures),
            box_id=row["index"],
            answer=None if answer is None else answer.strip().upper(),
            options={letter: row[letter] for letter in _LETTERS if letter in row},
            groups={axis: row[axis] for axis in ("category", "l2-category", "split") if axis in row},
        )

    def _picture(self, row: dict[str, str], pictures: dict[str, str]) -> Picture | None:
        if self.image_folder is not None and "image_path" in row:
            return self.picture(row["image_path"])
        image = row.get("image")
        if image is None:
            return None
        if len(image) <= _LONGEST_REFERENCE:
            if image not in pictures:
                raise XTunerError(
                    f"'{self.data_path}' row with index {row['index']}: its image is that of row {image}, which holds "
                    "none. Download the file again."
                )
            image = pictures[image]
        return Picture(key=row.get("image_path", ""), encoded=image)

    def prompt(self, question: Question) -> str:
        """Returns question, options and the request for a letter, in Chinese where the question is."""
        lines = [question.text, *(f"{letter}. {text}" for letter, text in question.options.items())]
        chinese = _CHINESE.search("\n".join(lines))
        request = (
            "请直接回答选项字母。" if chinese else "Answer with the option's letter from the given choices directly."
        )
        return "\n".join([*lines, request])

    def parse(self, question: Question, output: str) -> str | None:
        """Returns the letter that the answer chooses."""
        return option_letter(output, question.options)

    def score(self, predictions: Sequence[Prediction]) -> dict[str, Any]:
        """Returns the share of right answers; with `circular`, of questions right in all their rotations."""
        if not self.circular:
            return super().score(predictions)
        rotations: dict[int, list[tuple[Question, float]]] = defaultdict(list)
        for question, prediction in self.pairs(predictions):
            if prediction.hit is not None:
                rotations[self._base_index(question)].append((question, prediction.hit))
        scores = mean_by_groups((pairs[0][0].groups, min(hit for _, hit in pairs)) for pairs in rotations.values())
        single = mean_by_groups((question.groups, hit) for pairs in rotations.values() for question, hit in pairs)
        return {**scores, "without_circular": single["overall"]}

    def _base_index(self, question: Question) -> int:
        try:
            return int(float(question.box_id)) % _ROTATION
        except ValueError as error:
            raise XTunerError(
                f"'{self.data_path}': index '{question.box_id}' is not a number, but circular scoring finds the "
                f"rotations of a question by its number modulo {_ROTATION}. Set circular=False for this file."
            ) from error

    def write_files(self, folder: str, predictions: Sequence[Prediction]) -> list[str]:
        """Writes the xlsx that MMBench's server takes: the table without pictures, and a column `prediction`."""
        import pandas as pd

        path = os.path.join(folder, f"{self.name}.xlsx")
        rows = [
            {
                "index": question.box_id,
                "question": question.text,
                **question.options,
                **question.groups,
                "answer": question.answer,
                # the server reads letters itself; what could not be read is sent as it is
                "prediction": prediction.parsed or prediction.output,
            }
            for question, prediction in self.pairs(predictions)
        ]
        pd.DataFrame(rows).to_excel(path, index=False)
        return [path]
