"""A conversation about pictures: history, pictures with their boxes, answers as they come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from transformers import TextStreamer

from mg_llava.boxes.drawing import draw_boxes
from mg_llava.boxes.selection import PictureBoxes
from mg_llava.boxes.store import BoxStore
from mg_llava.inference.explain import explain_boxes
from mg_llava.inference.messages import IMAGE_PART
from mg_llava.inference.prompt_cache import PromptCache
from mg_llava.pictures.open import num_frames, open_picture
from xtuner.data.records.messages import read_message
from xtuner.data.text.templates import Turn
from xtuner.data.text.turns import read_turns
from xtuner.errors import XTunerError, counted

if TYPE_CHECKING:
    from mg_llava.inference.assistant import Assistant

MAX_PIXELS = 40_000_000
"""Largest picture of a conversation; a bomb of a few kilobytes can hold gigabytes of pixels."""

Detector = Callable[[Sequence[Image.Image]], "list[PictureBoxes]"]


@dataclass
class _Shown:
    """A picture of the conversation.

    Attributes:
        name: how it is called.
        picture: itself.
        found: the boxes that become object tokens; None = none asked for.
    """

    name: str
    picture: Image.Image
    found: PictureBoxes | None


class ChatSession:
    """A conversation with a model; its history grows with every answered question, and is read only once.

    Args:
        assistant: answers.
        detector: finds boxes where a picture comes without; None = such pictures have none.
        max_pixels: larger pictures are refused.

    Attributes:
        notes: what the user should know of the last picture (an animation, boxes left out); empty otherwise.
    """

    def __init__(self, assistant: Assistant, detector: Detector | None = None, max_pixels: int = MAX_PIXELS) -> None:
        self.assistant = assistant
        self.detector = detector
        self.max_pixels = max_pixels
        self.notes: list[str] = []
        self.cache = PromptCache(assistant.model)
        self.reset()

    def reset(self) -> None:
        """Forgets all turns and pictures."""
        self._turns: list[Turn] = []
        self._shown: list[_Shown] = []
        self._new_pictures = 0
        self.cache.reset()

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The answered turns."""
        return tuple(self._turns)

    def add_picture(self, path: str, box_path: str | None = None) -> int:
        """Shows a picture to the model with the next question.

        Args:
            path: the picture file.
            box_path: its boxes: a box file with a record of this picture (or with one record only); None = the
                detector's, or none.

        Returns:
            How many of its boxes become object tokens.

        Raises:
            XTunerError: no such file, not a picture, too large, or the box file has no record of it.
        """
        self.notes = []
        if not Path(path).is_file():
            raise XTunerError(f"picture '{path}' does not exist: check the path, and quote it if it contains spaces.")
        picture = open_picture(path, self.assistant.image_processor.apply_exif_orientation, self.max_pixels)
        frames = num_frames(path)
        if frames > 1:
            self.notes.append(f"'{path}' is an animation of {frames} frames: the first is shown")
        shown = _Shown(path, picture, self._find(path, picture, box_path))
        self._shown.append(shown)
        self._new_pictures += 1
        return 0 if shown.found is None else len(shown.found.boxes)

    def set_boxes(self, box_path: str | None) -> int:
        """Gives the last picture other boxes, for all coming answers; None takes them away.

        Raises:
            XTunerError: no picture was shown, or the file has no record of it.
        """
        if not self._shown:
            raise XTunerError("there is no picture to give boxes to: load one with --image or /image PATH first.")
        self.notes = []
        shown = self._shown[-1]
        shown.found = None if box_path is None else self._choose(read_boxes(box_path, shown.name), shown)
        return 0 if shown.found is None else len(shown.found.boxes)

    def detect(self) -> int:
        """Gives the last picture the detector's boxes.

        Raises:
            XTunerError: no picture was shown, or there is no detector.
        """
        if not self._shown:
            raise XTunerError("there is no picture to find boxes in: load one with --image or /image PATH first.")
        if self.detector is None:
            raise XTunerError("there is no detector: start with --boxes detector, or give a box file.")
        self.notes = []
        shown = self._shown[-1]
        shown.found = self._choose(self.detector([shown.picture])[0], shown)
        return len(shown.found.boxes)

    def _find(self, path: str, picture: Image.Image, box_path: str | None) -> PictureBoxes | None:
        shown = _Shown(path, picture, None)
        if box_path is not None:
            return self._choose(read_boxes(box_path, path), shown)
        if self.detector is not None:
            return self._choose(self.detector([picture])[0], shown)
        return None

    def _choose(self, found: PictureBoxes, shown: _Shown) -> PictureBoxes:
        chosen, outside = self.assistant.choose_boxes(found, shown.picture.size)
        if outside:
            width, height = shown.picture.size
            self.notes.append(f"left out: {counted(outside, 'boxes')} outside '{shown.name}' ({width} x {height})")
        return chosen

    def ask(self, text: str, max_new_tokens: int = 512, on_text: Callable[[str], None] | None = None) -> str:
        """Asks a question and keeps it with its answer; if it is interrupted, the history stays as it was.

        Args:
            text: the question; pictures shown since the last one stand before it. An ``<image>`` in it is text.
            max_new_tokens: the answer is cut there, and where the model's context ends.
            on_text: gets the answer piece by piece as it comes.

        Raises:
            XTunerError: the question is empty, or holds special tokens where these are refused, or the conversation
                passes the model's context.
        """
        question = self._question(text)
        prompt = self.assistant.prepare(
            [*self._turns, question],
            [shown.picture for shown in self._shown],
            [shown.found for shown in self._shown],
        )
        room = self.assistant.room(prompt)
        streamer = None if on_text is None else CallbackStreamer(self.assistant.tokenizer, on_text)
        ids = self.cache.generate(prompt, streamer=streamer, **self.assistant.greedy(min(max_new_tokens, room)))
        answer = self.assistant.decode(ids)
        self._turns.append(replace(question, output=answer))
        self._new_pictures = 0
        return answer

    def _question(self, text: str) -> Turn:
        if not text.strip():
            raise XTunerError("the question is empty: type one.")
        content = [*[IMAGE_PART] * self._new_pictures, {"type": "text", "text": text}]
        return read_turns([read_message({"role": "user", "content": content}, 1)]).turns[0]

    def explain(self, text: str, answer: str, before: Sequence[Turn]) -> list[float]:
        """Returns for each box of the last picture how much it spoke for `answer` to `text`; see `explain_boxes`.

        Args:
            text: the question.
            answer: what it was answered.
            before: the turns before it.

        Raises:
            XTunerError: no picture was shown.
        """
        if not self._shown:
            raise XTunerError("there are no regions to explain: load a picture with --image or /image PATH first.")
        answered = next(iter(self._turns[len(before) :]), None)
        asked = Turn(text) if answered is None else replace(answered, output=None)
        # pictures shown since are not what was answered
        count = sum(turn.num_pictures for turn in [*before, asked])
        pictures = [shown.picture for shown in self._shown[:count]]
        found = [shown.found for shown in self._shown[:count]]
        return explain_boxes(self.assistant, self.assistant.prepare([*before, asked], pictures, found), answer)

    def draw(self, path: str | Path, weights: Sequence[float] | None = None) -> None:
        """Saves the last picture with the boxes that the model was given.

        Args:
            path: target.
            weights: how much each box counted, see `draw_boxes`.

        Raises:
            XTunerError: no picture was shown, or the file's ending names no picture format.
        """
        if not self._shown:
            raise XTunerError("there is no picture to draw: load one with --image or /image PATH first.")
        shown = self._shown[-1]
        found = shown.found
        drawn = shown.picture if found is None else draw_boxes(shown.picture, found, weights)
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

    @property
    def last_boxes(self) -> PictureBoxes | None:
        """The boxes of the last picture."""
        return self._shown[-1].found if self._shown else None


class CallbackStreamer(TextStreamer):
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
    if len(store) != 1:
        raise XTunerError(
            f"box file '{box_path}' has {counted(len(store), 'records')} and none of '{image_path}': give a record "
            "with this picture as 'image', or a file with one record only, or --boxes none."
        )
    return next(store.records()).found
