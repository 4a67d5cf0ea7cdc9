"""Does a model answer its own records? Training records and held-out ones, asked turn by turn."""

from __future__ import annotations

import base64
import csv
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from mg_llava.boxes.records import BoxRecord, parse_own_boxes
from mg_llava.evaluation.benchmarks.base import Benchmark, mean_by_groups, unique_ids
from mg_llava.evaluation.benchmarks.clips import Clip
from mg_llava.evaluation.benchmarks.records import Picture, Prediction, Question
from mg_llava.evaluation.reading.answers import short_answer
from mg_llava.evaluation.reading.metrics import similarity
from mg_llava.videos.files import FrameFiles
from mg_llava.videos.places import read_video_name
from xtuner.constants import IMAGE_TOKEN
from xtuner.data.sources import open_pictures, open_source
from xtuner.data.sources.places import SCHEME, picture_name
from xtuner.data.text.conversations import Conversation, iter_conversations
from xtuner.data.text.templates import Place, Turn
from xtuner.errors import ProblemsError, SampleError

_ALIKE = 0.8
_MOST_LETTERS = 200
"""Longer answers are compared by words: the distance of two texts costs the product of their lengths."""
_COLUMNS = ("part", "question", "picture", "asked", "wanted", "given", "exact", "fuzzy")


@dataclass(kw_only=True, eq=False)
class OwnRecords(Benchmark):
    """Records as training reads them; each answered turn is one question, asked with the turns before it as given.

    An answer is exact if it has the wanted one's words (white space aside), and fuzzy if, without case, punctuation
    and articles, it is at least 80 % alike: by letters, or by words where it is long. `data_file` lists one file for
    each of `parts`, and scores are given for each. ``answers.csv`` beside the results has wanted and given answers.

    Args:
        parts: name of each data file's records, e.g. training and held-out.
    """

    parts: Sequence[str] = ("own",)

    def path(self, path: str) -> str:
        """Returns a path below `data_root`; pictures of a data source are named by themselves."""
        return path if path.startswith(SCHEME) else super().path(path)

    def files(self) -> list[str]:
        """Returns the files and folders that the questions cannot do without."""
        return [path for path in super().files() if not path.startswith(SCHEME)]

    def read_questions(self) -> list[Question]:
        """Reads the records' turns.

        Raises:
            ProblemsError: with every record that cannot be read.
        """
        files = FrameFiles(open_pictures(self.path(self.image_folder or "")))
        problems: list[str] = []
        found = [
            question
            for part, path in zip(self.parts, self.data_paths, strict=True)
            for conversation in iter_conversations(open_source(path).records(), problems, videos=True)
            for question in self._questions_of(conversation, part, files)
        ]
        if problems:
            raise ProblemsError(f"benchmark '{self.name}'", problems)
        ids = unique_ids(question.id for question in found)
        return [replace(question, id=key) for question, key in zip(found, ids, strict=True)]

    def _questions_of(self, conversation: Conversation, part: str, files: FrameFiles) -> list[Question]:
        questions, shown = [], 0
        pictures = self._pictures(conversation, files)
        for number, turn in enumerate(conversation.turns):
            shown += turn.num_pictures + turn.num_videos
            if not turn.supervised or not turn.output:
                continue
            place = f"#turn{number + 1}" if len(conversation.turns) > 1 else ""
            question = Question(
                id=f"{part}/{conversation.id}{place}",
                text="".join(piece if isinstance(piece, str) else IMAGE_TOKEN for piece in turn.parts),
                pictures=tuple(pictures[:shown]),
                box_id=conversation.id,
                answer=turn.output,
                groups={"part": part},
                turns=(*conversation.turns[:number], Turn(turn.input, None, turn.system)),
            )
            questions.append(question)
        return questions

    def _pictures(self, conversation: Conversation, files: FrameFiles) -> list[Picture]:
        """The pictures and videos of a record, in the order of their places."""
        images = zip(conversation.images, self._own_boxes(conversation), strict=True)
        videos = iter(conversation.videos)
        places = (part for turn in conversation.turns for part in turn.parts if isinstance(part, Place))
        return [
            self._clip(next(videos), files) if place is Place.VIDEO else self._picture(*next(images), files)
            for place in places
        ]

    def _clip(self, name: str, files: FrameFiles) -> Clip:
        path, start, end = read_video_name(name)
        rule = self.sampling.within(start, end)
        return Clip(picture_name(path), sampling=rule, shuffle=self.shuffle_frames, files=files, stored=path)

    def _own_boxes(self, conversation: Conversation) -> Sequence[BoxRecord | None]:
        if not conversation.boxes or self.box_json_path == "":
            return [None] * len(conversation.images)
        return parse_own_boxes(conversation.boxes, conversation.images, conversation.where)

    def _picture(self, name: str, boxes: BoxRecord | None, files: FrameFiles) -> Picture:
        key = picture_name(name)
        try:
            found = files.open(name)
        except SampleError:
            # told when it is asked
            found = os.path.join(self.path(self.image_folder or ""), name)
        if isinstance(found, io.BytesIO):
            return Picture(key, encoded=base64.b64encode(found.getvalue()).decode(), boxes=boxes)
        return Picture(key, path=found, boxes=boxes)

    def place_pictures(self, question: Question, words: str) -> tuple[str, list[Picture]]:
        """Returns the words as they are: the records say where pictures stand."""
        return words, list(question.pictures)

    def parse(self, question: Question, output: str) -> str | None:
        """Returns the answer with single spaces."""
        return _plain(output) or None

    def hit(self, question: Question, parsed: str | None) -> float:
        """Returns 1 for the wanted words."""
        return float(parsed == _plain(question.answer))

    def score(self, predictions: Sequence[Prediction]) -> dict[str, Any]:
        """Returns the exact shares as ``overall`` and ``groups``, and under ``fuzzy`` the same of alike answers."""
        pairs = self.pairs(predictions)
        alike = ((question.groups, _fuzzy(question.answer, one.output)) for question, one in pairs)
        return {**super().score(predictions), "fuzzy": mean_by_groups(alike)}

    def summary(self, metrics: Mapping[str, Any]) -> str:
        """Returns exact and fuzzy share of each part."""
        exact, fuzzy = (scores["groups"].get("part", {}) for scores in (metrics, metrics["fuzzy"]))
        return " · ".join(f"{part}: {exact[part]:.0%} exact, {fuzzy[part]:.0%} fuzzy" for part in exact)

    def write_files(self, folder: str, predictions: Sequence[Prediction]) -> list[str]:
        """Writes ``answers.csv``: one row per question, wanted answer beside given."""
        path = Path(folder) / "answers.csv"
        partial = path.with_suffix(".partial")
        with partial.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(_COLUMNS)
            for question, one in self.pairs(predictions):
                pictures = " ".join(picture.key for picture in question.pictures)
                given = one.output if one.error is None else f"(not asked: {one.error})"
                shares = (int(one.hit or 0), int(_fuzzy(question.answer, one.output)))
                row = (question.groups["part"], question.id, pictures, question.text, question.answer, given, *shares)
                writer.writerow(row)
        partial.replace(path)
        return [str(path)]


def _plain(text: str) -> str:
    return " ".join(text.split())


@lru_cache(maxsize=4096)  # scores are made anew from hundreds of samples of the same answers
def _fuzzy(wanted: str, given: str | None) -> float:
    """1 for an answer that says about the wanted; 0 else."""
    first, second = short_answer(wanted), short_answer(given or "")
    if not first or not second:
        return float(_plain(wanted) == _plain(given or ""))
    if max(len(first), len(second)) > _MOST_LETTERS:
        return float(similarity(first.split(), second.split()) >= _ALIKE)
    return float(similarity(first, second) >= _ALIKE)
