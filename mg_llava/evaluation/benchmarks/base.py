"""What a benchmark is: files, questions, prompts, the reading of an answer, and a score."""

from __future__ import annotations

import glob
import os
import re
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any, ClassVar

from mg_llava.boxes.store import BoxStore
from mg_llava.evaluation.benchmarks.clips import Clip
from mg_llava.evaluation.benchmarks.pictures import pictures_first
from mg_llava.evaluation.benchmarks.records import Picture, Prediction, Question
from mg_llava.evaluation.benchmarks.requests import AS_IN_FILE, SHORT_ANSWER_REQUEST, Requests, find_request
from mg_llava.evaluation.benchmarks.units import first_units
from mg_llava.videos import FrameFiles, FrameSampling
from mg_llava.videos.folders import FPS
from xtuner.data.pictures.files import picture_files
from xtuner.errors import ProblemsError, XTunerError
from xtuner.log import get_logger
from xtuner.registry import build

_REPEATED = re.compile(r"(.+)#\d+", re.DOTALL)

Verdict = tuple["str | None", "float | None"]
"""What a scorer read from an answer, and how right that is."""

_LONGEST = 1_000_000
"""Characters of a question, far more than any context holds: tokenising 100 MB would take minutes and gigabytes."""


@dataclass(kw_only=True, eq=False)
class Benchmark(ABC):
    """Questions with a way to ask them and a way to score the answers.

    Nothing is read before `questions()`; a whole table of benchmarks costs nothing to build.

    Args:
        name: folder of its results, and what ``--benchmarks`` takes.
        data_file: the authors' file, or files, relative to `data_root`.
        data_root: folder that paths are relative to.
        image_folder: folder of the pictures, or None where the file holds them; of videos also archives, see
            `xtuner.data.pictures.files.picture_files`.
        box_json_path: box file, relative to `data_root`; None = no object tokens, unless there is a `box_folder`.
        box_folder: folder of ``<name>.json`` box files, for a table of benchmarks; None = none.
        max_new_tokens: answers are cut there; choose what the benchmark's answers need.
        strict_reference: ask, read and score as the original did, faults and all, to compare with its numbers.
        request: the sentence after the question: a name of `requests`, or a sentence of your own; None = the first.
        frame_sampling: which frames of a video are shown; None = 8, spread evenly.
        shuffle_frames: shows them in another order, which tells whether a model heeds it.
    """

    requests: ClassVar[Requests] = AS_IN_FILE
    """Wordings of the sentence after the question, by whose they are."""
    strict_differs: ClassVar[bool] = False
    """Whether `strict_reference` changes anything for this kind."""

    name: str
    data_file: str | Sequence[str]
    data_root: str = ""
    image_folder: str | None = None
    box_json_path: str | None = None
    box_folder: str | None = None
    max_new_tokens: int = 16
    strict_reference: bool = False
    request: str | None = None
    frame_sampling: FrameSampling | Mapping[str, Any] | None = None
    shuffle_frames: bool = False

    def __post_init__(self) -> None:
        find_request(self.request, self.requests, self.name)
        self.sampling: FrameSampling = FrameSampling() if self.frame_sampling is None else build(self.frame_sampling)

    @property
    def wording(self) -> tuple[str, str]:
        """Whose wording the request has, and the sentence."""
        return find_request(self.request, self.requests, self.name)

    def path(self, path: str) -> str:
        """Returns a path below `data_root`."""
        return os.path.join(self.data_root, path)

    @property
    def data_paths(self) -> list[str]:
        """The authors' files."""
        files = [self.data_file] if isinstance(self.data_file, str) else self.data_file
        return [self.path(file) for file in files]

    @property
    def data_path(self) -> str:
        """The only one of the authors' files.

        Raises:
            XTunerError: there are several.
        """
        if len(self.data_paths) != 1:
            raise XTunerError(
                f"benchmark '{self.name}': {type(self).__name__} takes one data_file, found {self.data_file!r}."
            )
        return self.data_paths[0]

    @property
    def box_path(self) -> str | None:
        """The box file, or None."""
        if self.box_json_path:
            return self.path(self.box_json_path)
        return None if self.box_folder is None else os.path.join(self.box_folder, f"{self.name}.json")

    @cached_property
    def boxes(self) -> BoxStore | None:
        """The boxes of the box file, read once; None without one."""
        return None if self.box_path is None else BoxStore(self.box_path)

    def files(self) -> list[str]:
        """Returns the files and folders that the benchmark cannot do without."""
        image_folder = None if self.image_folder is None else self.path(self.image_folder)
        return [*self.data_paths, *(path for path in (image_folder, self.box_path) if path is not None)]

    def missing_files(self) -> list[str]:
        """Returns those of `files` that do not exist."""
        return [path for path in self.files() if not (os.path.exists(path) or glob.glob(path))]

    @cached_property
    def _questions(self) -> list[Question]:
        try:
            questions = self.read_questions()
        except XTunerError:
            raise
        except (TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError) as error:
            # rows may hold values of any kind where their readers expect one
            raise XTunerError(
                f"benchmark '{self.name}': {', '.join(self.data_paths)} holds a value of another kind than expected "
                f"({type(error).__name__}: {error}). Download the file again."
            ) from error
        if not questions:
            raise XTunerError(f"benchmark '{self.name}': {', '.join(self.data_paths)} holds no question.")
        if repeated := repeated_ids(questions):
            get_logger().info(
                "%s: %d ids stand in its files more than once, the later ones are called '%s', …",
                *(self.name, len(repeated), repeated[0]),
            )
        long = [f"question {one.id} has {len(one.text):,} characters" for one in questions if len(one.text) > _LONGEST]
        if long:
            raise ProblemsError(
                f"benchmark '{self.name}': {', '.join(self.data_paths)} (at most {_LONGEST:,} are read; perhaps a "
                "quotation mark is missing)",
                long,
            )
        return questions

    def questions(self) -> list[Question]:
        """Returns all questions, in the file's order; read once."""
        return self._questions

    def unit(self, question: Question) -> Hashable:
        """Returns the key of what a question counts with, such as its picture; alone by default."""
        return question.id

    def first_questions(self, limit: int | None) -> list[Question]:
        """Returns whole units of questions, at most `limit` questions but one unit at least; None = all."""
        return self.questions() if limit is None else first_units(self.questions(), self.unit, limit)

    @abstractmethod
    def read_questions(self) -> list[Question]:
        """Reads the benchmark's files.

        Raises:
            XTunerError: a row is malformed; the message names file and row.
        """

    def prompt(self, question: Question) -> str:
        """Returns the words to ask with, without the picture's place: the question and the request."""
        sentence = self.wording[1]
        if not sentence:
            return question.text
        # some files hold a request already; another takes its place
        return f"{question.text.removesuffix(SHORT_ANSWER_REQUEST).rstrip()}\n{sentence}"

    def place_pictures(self, question: Question, words: str) -> tuple[str, list[Picture]]:
        """Returns the words with ``<image>`` at each picture's place, and the pictures in that order.

        Raises:
            XTunerError: the question names a picture that it does not have.
        """
        return pictures_first(words, question.pictures)

    @abstractmethod
    def parse(self, question: Question, output: str) -> str | None:
        """Returns what `output` answers, or None if that cannot be told."""

    def hit(self, question: Question, parsed: str | None) -> float | None:
        """Returns how right `parsed` is, 0–1; None without a known answer."""
        return None if question.answer is None else float(parsed == question.answer)

    def predict(self, question: Question, prompt: str, output: str) -> Prediction:
        """Returns the prediction that an answer of the model amounts to."""
        parsed = self.parse(question, output)
        return Prediction(question.id, prompt, output, parsed, self.hit(question, parsed))

    def rules(self, questions: Sequence[Question]) -> dict[str, Any]:
        """Returns what ``metrics.json`` says of how these questions are scored, where their files decide that."""
        return {}

    def published(self, question: Question, output: str) -> dict[str, Verdict]:
        """Returns how published scorers read and score an answer, by their names; the benchmark's official one first.

        Empty where they agree with ours in everything.
        """
        return {}

    def score(self, predictions: Sequence[Prediction]) -> dict[str, Any]:
        """Returns ``overall`` (0–1, None if nothing could be scored), ``groups`` and what belongs beside them."""
        pairs = [
            (question, prediction) for question, prediction in self.pairs(predictions) if prediction.hit is not None
        ]
        means = {name: fmean(values.values()) for name, values in self.means(predictions).items() if values}
        return {**mean_by_groups((question.groups, prediction.hit or 0.0) for question, prediction in pairs), **means}

    def means(self, predictions: Sequence[Prediction]) -> dict[str, dict[str, float]]:
        """Returns further measures that are means over questions, 0–1: by name, the value by question id."""
        return {}

    def beside(self, predictions: Sequence[Prediction]) -> dict[str, Any]:
        """Returns what ``metrics.json`` says beside the scores: counts, and measures that have no standard error."""
        return {}

    def summary(self, metrics: Mapping[str, Any]) -> str:
        """Returns what the page of the results says above the answers, beside the overall score; "" = no more."""
        return ""

    def pairs(self, predictions: Iterable[Prediction]) -> list[tuple[Question, Prediction]]:
        """Joins predictions with their questions, in the order of the questions."""
        by_id = {prediction.id: prediction for prediction in predictions}
        return [(question, by_id[question.id]) for question in self.questions() if question.id in by_id]

    def scored(self, predictions: Iterable[Prediction]) -> list[tuple[Question, float]]:
        """Returns questions with how right their answers are, for those that have a known answer."""
        return [(question, one.hit) for question, one in self.pairs(predictions) if one.hit is not None]

    def write_files(self, folder: str, predictions: Sequence[Prediction]) -> list[str]:
        """Writes what the benchmark's server wants to have uploaded; returns the paths."""
        return []

    def picture(self, name: Any) -> Picture:
        """Returns the picture of that name, which may be a number, in the picture folder."""
        name = str(name)
        return Picture(key=name, path=os.path.join(self.path(self.image_folder or ""), name))

    @cached_property
    def videos(self) -> FrameFiles:
        """The folder or the archives of the videos."""
        return FrameFiles(picture_files(self.path(self.image_folder or "")))

    def clip(
        self, name: str, start: float | None = None, end: float | None = None, folder_fps: float | None = None
    ) -> Clip:
        """Returns the video of that name, or what lies between two seconds of it.

        Args:
            name: below the picture folder, or of a member of its archives; a folder of frames is a video, too.
            start, end: seconds; None = those of `frame_sampling`.
            folder_fps: frames per second of a folder of frames; None = one.
        """
        rule = self.sampling.within(start, end)
        rate = FPS if folder_fps is None else folder_fps
        return Clip(
            name, None, sampling=rule, shuffle=self.shuffle_frames, files=self.videos, stored=name, folder_fps=rate
        )


def mean_by_groups(hits: Iterable[tuple[Mapping[str, str], float]]) -> dict[str, Any]:
    """Returns ``{"overall": mean, "groups": {axis: {name: mean}}}`` of hits with their groups."""
    everything: list[float] = []
    grouped: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for groups, hit in hits:
        everything.append(hit)
        for axis, name in groups.items():
            grouped[axis][name].append(hit)
    return {
        "overall": fmean(everything) if everything else None,
        "groups": {axis: {name: fmean(values) for name, values in names.items()} for axis, names in grouped.items()},
    }


def equal(parsed: str | None, answer: str | None) -> Verdict:
    """Returns the verdict of a scorer that wants what it read to be the answer."""
    return parsed, None if answer is None else float(parsed == answer)


def repeated_ids(questions: Sequence[Question]) -> list[str]:
    """Returns the ids that `unique_ids` made unique."""
    ids = {question.id for question in questions}
    return [question.id for question in questions if (match := _REPEATED.fullmatch(question.id)) and match[1] in ids]


def id_text(value: Any) -> str:
    """Returns an id as text; 7.0 is 7, which programs make of it that take a column for numbers."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def unique_ids(ids: Iterable[Any]) -> list[str]:
    """Returns the ids as text; a repeated one gets ``#2``, ``#3``, …, because authors' files do repeat ids."""
    seen: dict[str, int] = defaultdict(int)
    result = []
    for value in map(id_text, ids):
        seen[value] += 1
        result.append(value if seen[value] == 1 else f"{value}#{seen[value]}")
    return result
