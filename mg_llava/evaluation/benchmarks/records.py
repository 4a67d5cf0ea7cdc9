"""The records of an evaluation: a picture, a question about it, and what a model said."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from mg_llava.boxes.records import BoxRecord
from mg_llava.pictures.open import open_base64
from mg_llava.pictures.preprocess import ImageProcessor
from xtuner.data.text.templates import Turn
from xtuner.errors import XTunerError


@dataclass(frozen=True)
class Picture:
    """A question's picture: a file, or one that stands base64-encoded in the benchmark's file.

    Args:
        key: what boxes are looked up by: the path relative to the picture folder, or "" where there is no path.
        path: the file, or None.
        encoded: base64 text of the file's bytes, or None.
        box_ids: further ids that box files may know it by, tried after `key` and the question's own.
        boxes: those that its record gives, or None.
        decoded: a frame of a video, which has no file of its own; None for a picture.
    """

    key: str
    path: str | None = None
    encoded: str | None = None
    box_ids: tuple[str, ...] = ()
    boxes: BoxRecord | None = None
    decoded: Image.Image | None = field(default=None, compare=False, repr=False)

    def open(self, image_processor: ImageProcessor) -> Image.Image:
        """Returns the picture as 8-bit RGB.

        Raises:
            XTunerError: it is missing, or is not a picture.
        """
        if self.decoded is not None:
            return self.decoded
        if self.path is not None:
            return image_processor.open(self.path)
        try:
            return open_base64(self.encoded or "", image_processor.apply_exif_orientation)
        except XTunerError as error:
            where = f"picture '{self.key}'" if self.key else "a picture"
            raise XTunerError(f"{where} in the benchmark file: {error} Download the file again.") from error

    def content(self) -> bytes:
        """Returns the bytes of the picture's file; of a frame as PNG.

        Raises:
            XTunerError: the file cannot be read, or the text is not base64.
        """
        if self.decoded is not None:
            stream = io.BytesIO()
            self.decoded.save(stream, "PNG")
            return stream.getvalue()
        try:
            return base64.b64decode(self.encoded or "") if self.path is None else Path(self.path).read_bytes()
        except (OSError, ValueError) as error:
            raise XTunerError(f"the picture '{self.key}' cannot be read: {error}") from error


@dataclass(frozen=True)
class Question:
    """One question of a benchmark.

    Attributes:
        id: unique in its benchmark; predictions are resumed by it.
        text: what is asked, as the benchmark's file has it.
        pictures: usually one; none for a question of words only.
        box_id: the authors' id of the question, which published box files use too.
        answer: what `Benchmark.hit` compares with; None where the authors keep the answer to themselves.
        options: letter → text of a multiple-choice question.
        groups: names under which scores are broken down, e.g. ``{"category": "color"}``.
        turns: the conversation that the question ends, the question last and unanswered; empty = `text` alone.
    """

    id: str
    text: str
    pictures: tuple[Picture, ...] = ()
    box_id: str = ""
    answer: Any = None
    options: Mapping[str, str] = field(default_factory=dict)
    groups: Mapping[str, str] = field(default_factory=dict)
    turns: tuple[Turn, ...] = ()


@dataclass(frozen=True)
class Prediction:
    """One line of ``predictions.jsonl``.

    Attributes:
        id: the question's.
        prompt: the user's words as the model got them (with ``<image>``), before the template.
        output: the model's raw answer; None if there was none, see `error`.
        parsed: what was read from the answer; None if nothing could be.
        hit: 0–1; None if the benchmark has no answer to compare with.
        error: why there is no answer, e.g. a missing picture.
    """

    id: str
    prompt: str
    output: str | None
    parsed: str | None
    hit: float | None
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the line's fields; `error` only where there is one."""
        return {key: value for key, value in asdict(self).items() if key != "error" or value is not None}
