"""A question with its pictures and boxes, as they are asked; and the prediction where that cannot be."""

from __future__ import annotations

from dataclasses import dataclass, field

from PIL import Image

from mg_llava.boxes.selection import PictureBoxes, no_boxes
from mg_llava.evaluation.benchmarks.base import Benchmark
from mg_llava.evaluation.benchmarks.clips import turns_with_frames, with_frames
from mg_llava.evaluation.benchmarks.pictures import find_boxes
from mg_llava.evaluation.benchmarks.records import Picture, Prediction, Question
from mg_llava.pictures.preprocess import ImageProcessor
from xtuner.constants import IMAGE_TOKEN
from xtuner.data.text.templates import Turn
from xtuner.errors import XTunerError


@dataclass(frozen=True)
class Shown:
    """What is shown of a question.

    Attributes:
        words: the prompt, with ``<image>`` at the place of each picture and of each frame of a video.
        turns: the conversation with the question at its end, frames in the places of videos.
        pictures: in the order of their places.
        opened: these as 8-bit RGB.
        found: the boxes of each; none where the box file knows none.
        error: why it cannot be asked; None where it can.
    """

    words: str
    turns: tuple[Turn, ...] = ()
    pictures: list[Picture] = field(default_factory=list)
    opened: list[Image.Image] = field(default_factory=list)
    found: list[PictureBoxes] = field(default_factory=list)
    error: str | None = None


def show(benchmark: Benchmark, question: Question, image_processor: ImageProcessor) -> Shown:
    """Returns a question as it is asked; a picture or video that is absent or broken is its `error`.

    Raises:
        XTunerError: the box file cannot say which boxes are a picture's.
    """
    words = benchmark.prompt(question)
    try:
        words, pictures = benchmark.place_pictures(question, words)
        if question.turns:
            turns, pictures = turns_with_frames(question.turns, pictures)
            words = "".join(part if isinstance(part, str) else IMAGE_TOKEN for part in turns[-1].parts)
        else:
            words, pictures = with_frames(words, pictures)
            turns = (Turn(words),)
        opened = [picture.open(image_processor) for picture in pictures]
    except XTunerError as error:
        return Shown(words if IMAGE_TOKEN in words else f"{IMAGE_TOKEN}\n{words}", error=str(error))
    records = [find_boxes(benchmark.boxes, question, one) for one in pictures]
    return Shown(words, turns, pictures, opened, [no_boxes() if record is None else record.found for record in records])


def unanswered(question: Question, words: str, error: str) -> Prediction:
    """Returns the prediction of a question that got no answer: wrong, where there is a right one."""
    return Prediction(question.id, words, None, None, None if question.answer is None else 0.0, error)
