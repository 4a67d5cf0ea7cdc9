"""RefCOCO, RefCOCO+, RefCOCOg: the box of what a phrase means; right at an overlap of one half."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from mg_llava.evaluation.benchmarks.base import Benchmark
from mg_llava.evaluation.benchmarks.files import read_questions
from mg_llava.evaluation.benchmarks.records import Question
from mg_llava.evaluation.benchmarks.requests import BOX, Requests
from mg_llava.evaluation.reading.metrics import box_iou
from xtuner.errors import XTunerError

_BOX = re.compile(r"\[\s*" + r"\s*,\s*".join([r"(-?\d+(?:\.\d+)?)"] * 4) + r"\s*\]")
_RIGHT_FROM = 0.5


@dataclass(kw_only=True, eq=False)
class RefCOCO(Benchmark):
    """JSON lines of ``{image, sent, bbox, width, height}``, as Qwen-VL published them; accuracy at IoU 0.5.

    `bbox` is xyxy in pixels of the picture. Each phrase is a line of its own.

    Args:
        max_new_tokens: enough for a box.
        square_frame: the model answers in shares of the picture padded to a square in its middle, as LLaVA-1.5's data
            has it; False: in shares of the picture's own width and height.
        (others): see `Benchmark`.
    """

    requests: ClassVar[Requests] = BOX

    max_new_tokens: int = 48
    square_frame: bool = True

    def read_questions(self) -> list[Question]:
        """Reads the lines; one without its fields is named."""
        questions = []
        for number, row in enumerate(read_questions(self.data_path, ("image", "sent", "width", "height"))):
            box = row.get("bbox")
            where = f"'{self.data_path}' question {number + 1}"
            questions.append(
                Question(
                    id=str(number),
                    text=str(row["sent"]),
                    pictures=(self.picture(self._below_folder(str(row["image"]))),),
                    box_id=str(number),
                    answer=None if box is None else self._shares(*_numbers(row, where)),
                )
            )
        return questions

    def _below_folder(self, name: str) -> str:
        """The part of a picture's path that stands below the picture folder.

        Files in circulation write paths from where their own scripts ran, ``data/coco/train2014/….jpg`` for instance.
        """
        folder = self.path(self.image_folder or "")
        parts = name.replace("\\", "/").lstrip("/").split("/")
        tails = ("/".join(parts[start:]) for start in range(len(parts)))
        return next((tail for tail in tails if os.path.isfile(os.path.join(folder, tail))), name)

    def _shares(self, box: Sequence[float], width: float, height: float) -> list[float]:
        """A box in pixels of the picture → in shares of the frame that the model answers in."""
        if not self.square_frame:
            return [box[0] / width, box[1] / height, box[2] / width, box[3] / height]
        side = max(width, height)
        left, top = (side - width) / 2, (side - height) / 2
        return [(box[0] + left) / side, (box[1] + top) / side, (box[2] + left) / side, (box[3] + top) / side]

    def prompt(self, question: Question) -> str:
        """Returns the request, by default as LLaVA-1.5's training data has it, and the phrase."""
        return f"{self.wording[1]} {question.text}"

    def parse(self, question: Question, output: str) -> str | None:
        """Returns the first four numbers in brackets, or None."""
        found = _BOX.search(output)
        return found.group() if found else None

    def hit(self, question: Question, parsed: str | None) -> float | None:
        """Returns whether the box overlaps the right one by at least one half."""
        if question.answer is None:
            return None
        found = _BOX.search(parsed or "")
        return float(found is not None and box_iou([float(x) for x in found.groups()], question.answer) >= _RIGHT_FROM)


def _numbers(row: dict[str, Any], where: str) -> tuple[list[float], float, float]:
    """The box, width and height of a row.

    Raises:
        XTunerError: they are no numbers, or no box within a picture.
    """
    try:
        box, width, height = [float(x) for x in row["bbox"]], float(row["width"]), float(row["height"])
    except (TypeError, ValueError):
        box, width, height = [], 0.0, 0.0
    if len(box) != len("xyxy") or width <= 0 or height <= 0 or box[0] > box[2] or box[1] > box[3]:
        raise XTunerError(
            f"{where}: bbox {row['bbox']!r} of a picture of {row['width']!r} x {row['height']!r}: expected [left, top, "
            "right, bottom] in pixels, not a width and height."
        )
    return box, width, height
