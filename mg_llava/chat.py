"""A conversation about pictures: history, pictures with their boxes, answers as they come."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageFont
from transformers import TextStreamer

from mg_llava.box_store import BoxStore
from mg_llava.boxes import PictureBoxes
from xtuner.constants import IMAGE_TOKEN
from xtuner.data.templates import Turn
from xtuner.errors import XTunerError

if TYPE_CHECKING:
    from mg_llava.assistant import Assistant

_BOX_COLORS = ("#ff5d5d", "#4fd1ff", "#ffd34d", "#7be37b", "#ff8ae2", "#ffa04d", "#b69cff", "#f2f2f2")
"""One per label, again from the first where there are more labels."""

_LEGIBLE_SIDE = 640
"""Pixels; pictures with a shorter longer side are enlarged by a whole factor before boxes are drawn."""


@dataclass(frozen=True)
class _Shown:
    """A picture of the conversation."""

    name: str
    picture: Image.Image
    found: PictureBoxes | None


class ChatSession:
    """A conversation with a model; its history grows with every answered question.

    Args:
        assistant: answers.
    """

    def __init__(self, assistant: Assistant) -> None:
        self.assistant = assistant
        self.reset()

    def reset(self) -> None:
        """Forgets all turns and pictures."""
        self._turns: list[Turn] = []
        self._shown: list[_Shown] = []
        self._new_pictures = 0

    def add_picture(self, path: str, box_path: str | None = None) -> int:
        """Shows a picture to the model with the next question.

        Args:
            path: the picture file.
            box_path: its boxes: a box file with a record of this picture (or with one record only); None = no boxes.

        Returns:
            How many of its boxes become object tokens.

        Raises:
            XTunerError: not a picture, or the box file has no record of it.
        """
        picture = self.assistant.image_processor.open(path)
        found = None if box_path is None else self._choose(read_boxes(box_path, path))
        self._shown.append(_Shown(path, picture, found))
        self._new_pictures += 1
        return 0 if found is None else len(found.boxes)

    def _choose(self, found: PictureBoxes) -> PictureBoxes:
        return self.assistant.boxes(*found, training=False)

    def ask(self, text: str, max_new_tokens: int = 512, on_text: Callable[[str], None] | None = None) -> str:
        """Asks a question and keeps it with its answer; if it is interrupted, the history stays as it was.

        Args:
            text: the question; pictures shown since the last one stand before it.
            max_new_tokens: the answer is cut there.
            on_text: gets the answer piece by piece as it comes.

        Raises:
            XTunerError: the question is empty or holds ``<image>``.
        """
        if not text.strip():
            raise XTunerError("the question is empty: say something.")
        if IMAGE_TOKEN in text:
            raise XTunerError(
                f"the question holds {IMAGE_TOKEN}, which stands for a picture: show one with /image PATH."
            )
        question = f"{IMAGE_TOKEN}\n" * self._new_pictures + text.strip()
        prompt = self.assistant.prepare(
            [*self._turns, Turn(question)],
            [shown.picture for shown in self._shown],
            [shown.found for shown in self._shown],
        )
        streamer = None if on_text is None else _CallbackStreamer(self.assistant.tokenizer, on_text)
        (answer,) = self.assistant.generate([prompt], max_new_tokens, streamer)
        self._turns.append(Turn(question, answer))
        self._new_pictures = 0
        return answer

    def draw(self, path: str | Path) -> None:
        """Saves the last picture with the boxes that the model was given.

        Raises:
            XTunerError: no picture was shown, or the file's ending names no picture format.
        """
        if not self._shown:
            raise XTunerError("there is no picture to draw: show one with --image or /image PATH first.")
        shown = self._shown[-1]
        drawn = shown.picture if shown.found is None else draw_boxes(shown.picture, shown.found)
        try:
            drawn.save(path)
        except (ValueError, OSError) as error:
            raise XTunerError(
                f"the picture cannot be saved as '{path}': {error}. Give a path that ends in .png."
            ) from error

    def describe(self) -> dict[str, Any]:
        """Returns pictures and number of boxes, for JSON output."""
        counts = [0 if shown.found is None else len(shown.found.boxes) for shown in self._shown]
        return {"images": [shown.name for shown in self._shown], "boxes": counts}


class _CallbackStreamer(TextStreamer):
    """Hands finished words to a function instead of printing them."""

    def __init__(self, tokenizer: Any, on_text: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_special_tokens=True)
        self.on_text = on_text

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Called by transformers with each piece of text."""
        if text:
            self.on_text(text)


def read_boxes(box_path: str, image_path: str) -> PictureBoxes:
    """Returns a picture's boxes from a box file: those of its path or a tail of it, or those of the file's only record.

    Raises:
        XTunerError: the file is no box file, or has several records and none of this picture.
    """
    store = BoxStore(box_path)
    parts = Path(image_path).parts
    for start in range(len(parts)):
        record = store.find(Path(*parts[start:]).as_posix(), Path(image_path).stem)
        if record is not None:
            return record.found
    content = json.loads(Path(box_path).read_text(encoding="utf-8"))
    records = list(content.values()) if isinstance(content, dict) else content
    if len(records) != 1:
        raise XTunerError(
            f"box file '{box_path}' has {len(records)} records and none of '{image_path}': give a record with this "
            "picture as 'image', or a file with one record only, or --boxes none."
        )
    key = records[0].get("image"), records[0].get("id")
    return store.lookup(*key)


def draw_boxes(picture: Image.Image, found: PictureBoxes) -> Image.Image:
    """Returns an RGB picture with boxes, labels and scores drawn on it; a small one enlarged, so that they can be read.

    Args:
        picture: not changed.
        found: boxes xyxy in pixels of `picture`.
    """
    scale = max(1, math.ceil(_LEGIBLE_SIDE / max(picture.size)))
    drawn = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(drawn)
    font = ImageFont.load_default(max(12, round(max(drawn.size) / 55)))
    width = max(1, round(max(drawn.size) / 400))
    labels = sorted(set(found.labels))
    for box, label, score in zip(found.boxes.tolist(), found.labels, found.scores, strict=True):
        color = _BOX_COLORS[labels.index(label) % len(_BOX_COLORS)]
        left, top, right, bottom = (coordinate * scale for coordinate in box)
        pen.rectangle((left, top, max(left, right), max(top, bottom)), outline=color, width=width)
        text = f"{label} {score:.2f}"
        text_left, text_top, text_right, text_bottom = pen.textbbox((0, 0), text, font=font)
        # above the box and within the picture
        corner_left = min(max(0, left), max(0, drawn.width - text_right - 2))
        corner_top = max(0, top - text_bottom - 2)
        pen.rectangle((corner_left, corner_top, corner_left + text_right + 2, corner_top + text_bottom + 2), fill=color)
        pen.text((corner_left + 1 - text_left, corner_top + 1), text, fill="black", font=font)
    return drawn
