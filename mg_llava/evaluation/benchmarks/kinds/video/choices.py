"""Multiple choice about videos: MVBench (arXiv 2311.17005), Video-MME (2405.21075), NExT-QA (2105.08276)."""

from __future__ import annotations

import posixpath
import string
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mg_llava.evaluation.benchmarks.base import id_text, unique_ids
from mg_llava.evaluation.benchmarks.files import read_json, read_table, require
from mg_llava.evaluation.benchmarks.kinds.choice_files import ChoiceFile
from mg_llava.evaluation.benchmarks.kinds.video.find import find_video
from mg_llava.evaluation.benchmarks.labels import read_list
from mg_llava.evaluation.benchmarks.records import Question
from xtuner.errors import XTunerError

_TVQA_FPS = 3.0
"""Of the folders of frames (``data_type`` frame) among MVBench's videos."""
_LETTERS = string.ascii_uppercase


class _VideoChoices(ChoiceFile):
    """A table with one question a row."""

    needed: tuple[str, ...] = ()
    separator = "\t"

    def read_questions(self) -> list[Question]:
        """Reads the table; a row without its fields, or whose answer is no option, is named."""
        rows = read_table(self.data_path, self.separator)
        require(((f"row {number}", row) for number, row in enumerate(rows, start=1)), self.needed, self.data_path)
        ids = unique_ids(self.row_id(row, number) for number, row in enumerate(rows))
        return self.checked([self.read_row(key, row) for key, row in zip(ids, rows, strict=True)])

    def row_id(self, row: Mapping[str, str], number: int) -> str:
        """Returns the id that the authors give, or the number of the row from 0."""
        return row.get("index", str(number))

    @abstractmethod
    def read_row(self, unique_id: str, row: Mapping[str, str]) -> Question:
        """Returns the question of a row."""

    def video(self, *names: str) -> str:
        """Returns the path of the video of one of these names, below the folder of videos."""
        return find_video(self.videos, *names)


class MVBench(_VideoChoices):
    """VLMEvalKit's ``MVBench.tsv``: ``task_type, prefix, start?, end?, video, question, answer, candidates``.

    ``overall`` is the accuracy over all questions; by task in ``groups.task``. Videos stand in
    `image_folder`, in the folders that `prefix` ends with: ``star/C_480`` of ``…/video/star/C_480``. TVQA's are folders
    of frames, three a second.
    """

    needed = ("task_type", "prefix", "video", "question", "answer", "candidates")

    def read_row(self, unique_id: str, row: Mapping[str, str]) -> Question:
        """Returns the question; the answer is the letter of the candidate that the row gives as text."""
        options = dict(zip(_LETTERS, read_list(row["candidates"]), strict=False))
        right = next((letter for letter, text in options.items() if text == row["answer"]), row["answer"])
        folder = row["prefix"].replace("\\", "/").rpartition("video/")[2].strip("/")
        start, end = (float(row[key]) if key in row else None for key in ("start", "end"))
        rate = _TVQA_FPS if row.get("data_type") == "frame" else None
        return Question(
            id=unique_id,
            text=row["question"],
            pictures=(self.clip(self.video(posixpath.join(folder, row["video"])), start, end, rate),),
            box_id=unique_id,
            answer=right,
            options=options,
            groups={"task": row["task_type"]},
        )


class VideoMME(_VideoChoices):
    """VLMEvalKit's ``Video-MME.tsv``: ``video, duration, domain, sub_category, task_type, question, answer,
    candidates``.

    Accuracy, also by duration (short, medium, long), domain, sub-category and task; without subtitles.
    """

    needed = ("video", "question", "answer", "candidates")

    def read_row(self, unique_id: str, row: Mapping[str, str]) -> Question:
        """Returns the question; candidates may begin with their letter ("A. …")."""
        texts = read_list(row["candidates"])
        options = {
            letter: text.removeprefix(f"{letter}.").removeprefix(f"{letter})").strip()
            for letter, text in zip(_LETTERS, texts, strict=False)
        }
        axes = ("duration", "domain", "sub_category", "task_type")
        return Question(
            id=unique_id,
            text=row["question"],
            pictures=(self.clip(self.video(row["video"])),),
            box_id=unique_id,
            answer=row["answer"].strip().upper(),
            options=options,
            groups={axis: row[axis] for axis in axes if axis in row},
        )


@dataclass(kw_only=True, eq=False)
class NExTQA(_VideoChoices):
    """The authors' ``val.csv`` or ``test.csv``: ``video, question, answer, qid, type, a0, …, a4``; the answer a number.

    Accuracy, also by causal (C), temporal (T) and descriptive (D) questions and by the finer type (CW, TN, …).

    Args:
        map_file: the authors' ``map_vid_vidorID.json``, relative to `data_root`, where videos lie in VidOR's folders;
            None = they are called by the `video` of the table.
        (others): see `Benchmark`.
    """

    needed = ("video", "question", "answer", "qid", "type", "a0", "a1")
    separator = ","

    map_file: str | None = None

    def files(self) -> list[str]:
        """Returns the table, the map of videos, the folder of the videos and the box file."""
        return [*super().files(), *([] if self.map_file is None else [self.path(self.map_file)])]

    def read_questions(self) -> list[Question]:
        """Reads the map of videos, then the table."""
        self._folders: dict[str, str] = {}
        if self.map_file is not None:
            path = self.path(self.map_file)
            found: Any = read_json(path)
            if not isinstance(found, dict):
                raise XTunerError(
                    f"'{path}': expected an object of VidOR's paths by video, found {type(found).__name__}."
                )
            self._folders = {str(key): str(value) for key, value in found.items()}
        return super().read_questions()

    def row_id(self, row: Mapping[str, str], number: int) -> str:
        """Returns video and number of the question in it, as the authors' script names questions."""
        return f"{id_text(row['video'])}_{row['qid']}"

    def read_row(self, unique_id: str, row: Mapping[str, str]) -> Question:
        """Returns the question with the options a0 to a4 as A to E."""
        options = {letter: row[key] for number, letter in enumerate(_LETTERS) if (key := f"a{number}") in row}
        answer = row["answer"]
        return Question(
            id=unique_id,
            text=row["question"],
            pictures=(self.clip(self.video(self._folders.get(row["video"], row["video"]))),),
            box_id=unique_id,
            answer=_LETTERS[int(answer)] if answer.isdigit() and int(answer) < len(options) else answer,
            options=options,
            groups={"kind": row["type"][:1], "type": row["type"]},
        )
