"""VLMEvalKit's tables of questions, and the two benchmarks of open questions that come in them: DocVQA and OCRVQA."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from mg_llava.evaluation.answers import short_answer
from mg_llava.evaluation.base import Benchmark, Picture, Question, unique_ids
from mg_llava.evaluation.files import read_table, require
from mg_llava.evaluation.metrics import anls
from xtuner.errors import XTunerError

SHORT_ANSWER_REQUEST = "Answer the question using a single word or phrase."
_LONGEST_REFERENCE = 64
"""An image cell this short is the index of the row that holds the picture."""


def read_answers(cell: str) -> list[str]:
    """Returns the right answers of a cell: a Python list literal, or one answer as it stands."""
    if cell.lstrip().startswith("["):
        try:
            return [str(answer) for answer in ast.literal_eval(cell.strip())]
        except (ValueError, SyntaxError):
            # an answer that just begins with a bracket
            return [cell]
    return [cell]


class TableBenchmark(Benchmark):
    """A TSV of ``index, image?, image_path?, question, …``.

    `image` is base64 text or the index of the row that has it; `image_path` with an `image_folder` stands in for it.
    """

    def rows(self, needed: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str], Picture | None]]:
        """Yields (unique id, cells that are not empty, picture) of each row.

        Args:
            needed: columns that no row may leave empty; ``index`` must be among them.

        Raises:
            XTunerError: a row lacks one, or refers to a picture that is not there.
        """
        rows = read_table(self.data_path)
        for number, row in enumerate(rows, start=1):
            require(row, needed, f"'{self.data_path}' row {number}")
        pictures = {row["index"]: row["image"] for row in rows if len(row.get("image", "")) > _LONGEST_REFERENCE}
        for unique_id, row in zip(unique_ids(row["index"] for row in rows), rows, strict=True):
            yield unique_id, row, self._picture(row, pictures)

    def _picture(self, row: dict[str, str], pictures: dict[str, str]) -> Picture | None:
        image = row.get("image")
        if "image_path" in row and self.image_folder is not None:
            return self.picture(row["image_path"])
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


@dataclass(kw_only=True, eq=False)
class DocVQA(TableBenchmark):
    """A TSV of ``index, image, question, answer?, split?``, scored by ANLS; `answer` may be a list of answers."""

    def read_questions(self) -> list[Question]:
        """Reads the table; a row without index or question is named by its number."""
        return [
            Question(
                id=unique_id,
                text=row["question"],
                picture=picture,
                box_id=row["index"],
                answer=read_answers(row["answer"]) if "answer" in row else None,
                groups={"split": row["split"]} if "split" in row else {},
            )
            for unique_id, row, picture in self.rows(("index", "question"))
        ]

    def prompt(self, question: Question) -> str:
        """Returns the question and the request for a short answer."""
        return f"{question.text}\n{SHORT_ANSWER_REQUEST}"

    def parse(self, question: Question, output: str) -> str | None:
        """Returns the answer without outer spaces."""
        return output.strip() or None

    def hit(self, question: Question, parsed: str | None) -> float | None:
        """Returns the similarity to the nearest right answer, see `metrics.anls`."""
        return None if question.answer is None else anls(parsed or "", question.answer)


class OCRVQA(DocVQA):
    """The same table, scored by exact match of normalised answers (`answers.short_answer`)."""

    def parse(self, question: Question, output: str) -> str | None:
        """Returns the normalised answer."""
        return short_answer(output) or None

    def hit(self, question: Question, parsed: str | None) -> float | None:
        """Returns whether the answer is one of the right ones."""
        if question.answer is None:
            return None
        return float(parsed is not None and parsed in {short_answer(answer) for answer in question.answer})
