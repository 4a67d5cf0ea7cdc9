"""RefCOCO, RefCOCO+, RefCOCOg: the box of what a phrase means; right at an overlap of one half."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from mg_llava.evaluation.base import Benchmark, Question
from mg_llava.evaluation.files import read_json_lines, require
from mg_llava.evaluation.metrics import box_iou

_BOX = re.compile(r"\[\s*" + r"\s*,\s*".join([r"(-?\d+(?:\.\d+)?)"] * 4) + r"\s*\]")
_RIGHT_FROM = 0.5


@dataclass(kw_only=True, eq=False)
class RefCOCO(Benchmark):
    """JSON lines of ``{image, sent, bbox, width, height}``, bbox xyxy in pixels; accuracy at IoU 0.5.

    Args:
        max_new_tokens: enough for a box.
        square_frame: the model answers in shares of the picture padded to a square in its middle, as LLaVA-1.5's data
            has it; False: in shares of the picture's own width and height.
        (others): see `Benchmark`.
    """

    max_new_tokens: int = 48
    square_frame: bool = True

    def read_questions(self) -> list[Question]:
        """Reads the lines; one without its fields is named."""
        questions = []
        for number, row in enumerate(read_json_lines(self.data_path)):
            require(row, ("image", "sent", "width", "height"), f"'{self.data_path}' question {number + 1}")
            box = row.get("bbox")
            questions.append(
                Question(
                    id=str(number),
                    text=str(row["sent"]),
                    picture=self.picture(row["image"]),
                    box_id=str(number),
                    answer=None if box is None else self._shares(box, float(row["width"]), float(row["height"])),
                )
            )
        return questions

    def _shares(self, box: Sequence[float], width: float, height: float) -> list[float]:
        """A box in pixels of the picture → in shares of the frame that the model answers in."""
        if not self.square_frame:
            return [box[0] / width, box[1] / height, box[2] / width, box[3] / height]
        side = max(width, height)
        left, top = (side - width) / 2, (side - height) / 2
        return [(box[0] + left) / side, (box[1] + top) / side, (box[2] + left) / side, (box[3] + top) / side]

    def prompt(self, question: Question) -> str:
        """Returns the request as LLaVA-1.5's training data has it."""
        return f"Please provide the bounding box coordinate of the region this sentence describes: {question.text}"

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
