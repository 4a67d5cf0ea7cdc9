"""A conversation about pictures: history, pictures with their boxes, answers as they come."""

from __future__ import annotations

import io
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from mg_llava.boxes.drawing import draw_boxes, draw_frames
from mg_llava.boxes.selection import PictureBoxes
from mg_llava.boxes.store import read_boxes
from mg_llava.inference.explain import Influence, explain_answer
from mg_llava.inference.generation import CallbackStreamer, Draws
from mg_llava.inference.history import history_text, read_history
from mg_llava.inference.messages import question_about, shown_in
from mg_llava.inference.prompt_cache import PromptCache
from mg_llava.pictures.open import num_frames, open_picture
from mg_llava.videos import FrameSampling, read_frames
from xtuner.constants import HOTTEST
from xtuner.data.text.templates import Turn
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
        content: bytes of its file.
        frames: of its video; 0 = it is a picture.
    """

    name: str
    picture: Image.Image
    found: PictureBoxes | None
    content: bytes
    frames: int = 0


class ChatSession:
    """A conversation with a model; its history grows with every answered question, and is read only once.

    Args:
        assistant: answers.
        detector: finds boxes where a picture comes without; None = such pictures have none.
        max_pixels: larger pictures are refused.

    Attributes:
        notes: what the user should know of the last picture (an animation, boxes left out); empty otherwise.
        draws: how tokens are drawn; None = the likeliest each time.
        finish_reason: why the last answer ended: ``stop`` (by itself) or ``length`` (it was cut); "" before the first.
    """

    def __init__(self, assistant: Assistant, detector: Detector | None = None, max_pixels: int = MAX_PIXELS) -> None:
        self.assistant = assistant
        self.detector = detector
        self.max_pixels = max_pixels
        self.notes: list[str] = []
        self.draws: Draws | None = None
        self._num_drawn = 0
        self.finish_reason = ""
        self.cache = PromptCache(assistant.model)
        self.reset()

    def set_temperature(self, temperature: float, seed: int | None = None) -> None:
        """Says how the next answers are made.

        Args:
            temperature: 0 = the likeliest token each time; up to `HOTTEST`.
            seed: of the draws: the same questions get the same answers again; None = a new one.

        Raises:
            XTunerError: another temperature, or a seed that is no whole number of 63 bits.
        """
        if not 0 <= temperature <= HOTTEST:
            raise XTunerError(f"the temperature is {temperature}: expected a number from 0 to {HOTTEST}, e.g. 0.7.")
        seed = secrets.randbits(63) if seed is None else seed
        self.draws = Draws(seed, temperature, top_p=1.0) if temperature else None
        self._num_drawn = 0

    def reset(self) -> None:
        """Forgets all turns and pictures."""
        self._turns: list[Turn] = []
        self._shown: list[_Shown] = []
        # what was shown since the last question: 0 a picture, else the frames of a video
        self._new: list[int] = []
        self.finish_reason = ""
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
        shown = _Shown(path, picture, None, Path(path).read_bytes())
        shown.found = self._find(shown, box_path)
        self._shown.append(shown)
        self._new.append(0)
        return 0 if shown.found is None else len(shown.found.boxes)

    def add_video(self, path: str, num_frames: int | None = None) -> int:
        """Shows the frames of a video to the model with the next question, each with the detector's boxes, if any.

        Args:
            path: of the file or folder of frames; ``clip.mp4#t=3,12`` is a part of it.
            num_frames: spread evenly over it; None = 8.

        Returns:
            How many frames are shown.

        Raises:
            XTunerError: it cannot be read, has no frames in the range, or larger ones than allowed.
        """
        self.notes = []
        frames = read_frames(path, FrameSampling(num_frames=num_frames), self.max_pixels)
        for picture, place in zip(frames.pictures, frames.places, strict=True):
            content = io.BytesIO()
            picture.save(content, "PNG")
            name = f"{path}, {place.time:.2f} s"
            shown = _Shown(name, picture, None, content.getvalue(), len(frames.pictures))
            shown.found = self._find(shown, None)
            self._shown.append(shown)
        self._new.append(len(frames.pictures))
        if frames.repeats:
            self.notes.append(f"'{path}' has only {counted(len(frames.pictures), 'frames')} to show")
        return len(frames.pictures)

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

    def _find(self, shown: _Shown, box_path: str | None) -> PictureBoxes | None:
        if box_path is not None:
            return self._choose(read_boxes(box_path, shown.name), shown)
        if self.detector is not None:
            return self._choose(self.detector([shown.picture])[0], shown)
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
        question = question_about(text, self._new)
        answer = self._answer(self._turns, question, self._shown, max_new_tokens, on_text)
        self._turns.append(replace(question, output=answer))
        self._new = []
        return answer

    def ask_again(
        self,
        number: int = -1,
        text: str | None = None,
        max_new_tokens: int = 512,
        on_text: Callable[[str], None] | None = None,
    ) -> str:
        """Asks an earlier question once more and forgets what came after it; if interrupted, nothing is forgotten.

        Pictures that were shown since the last question stay for the next one.

        Args:
            number: of the question, from 0; negative ones count from the end.
            text: what is asked instead, about the same pictures; None = the same.
            max_new_tokens: see `ask`.
            on_text: see `ask`.

        Raises:
            XTunerError: there is no such question, or as `ask`.
        """
        if not -len(self._turns) <= number < len(self._turns):
            raise XTunerError(
                f"there are {counted(len(self._turns), 'answered questions')}, so none to ask again under that number."
            )
        number %= len(self._turns)
        before = self._turns[:number]
        asked = replace(self._turns[number], output=None)
        if text is not None:
            asked = question_about(text, shown_in(asked))
        shown = self._shown[: sum(turn.num_pictures for turn in [*before, asked])]
        answer = self._answer(before, asked, shown, max_new_tokens, on_text)
        unasked = self._shown[len(self._shown) - sum(frames or 1 for frames in self._new) :]
        self._turns = [*before, replace(asked, output=answer)]
        self._shown = [*shown, *unasked]
        return answer

    def _answer(
        self,
        before: Sequence[Turn],
        question: Turn,
        shown: Sequence[_Shown],
        max_new_tokens: int,
        on_text: Callable[[str], None] | None,
    ) -> str:
        pictures, found = [one.picture for one in shown], [one.found for one in shown]
        prompt = self.assistant.prepare([*before, question], pictures, found)
        config = self.assistant.generation_config(min(max_new_tokens, self.assistant.room(prompt)), self.draws)
        streamer = None if on_text is None else CallbackStreamer(self.assistant.tokenizer, on_text)
        with self.assistant.seeded(self.draws, [str(self._num_drawn)]):
            # counted also where it is interrupted: asked again, it is drawn anew
            self._num_drawn += 1
            ids = self.cache.generate(prompt, streamer=streamer, generation_config=config)
        answer = self.assistant.decode(ids)
        self.finish_reason = self.assistant.finish_reason(ids)
        return answer

    def save(self, path: str | Path) -> None:
        """Writes the answered turns with their pictures and boxes to a file, see `mg_llava.inference.history`.

        Raises:
            XTunerError: there is no answer yet, a video was shown, the file would be too large to be loaded, or cannot
                be written.
        """
        if any(map(any, map(shown_in, self._turns))):
            raise XTunerError("a chat about a video cannot be saved, only chats about pictures can.")
        count = sum(turn.num_pictures for turn in self._turns)
        text = history_text(self._turns, [(shown.content, shown.found) for shown in self._shown[:count]])
        unfinished = Path(f"{path}.unfinished")
        try:
            unfinished.write_text(text, encoding="utf-8")
            unfinished.replace(path)
        except OSError as error:
            unfinished.unlink(missing_ok=True)
            raise XTunerError(f"the chat cannot be saved as '{path}': {error}; give another path.") from error

    def load(self, path: str | Path) -> None:
        """Goes on with a saved conversation in the place of this one; where that fails, this one stays.

        Raises:
            XTunerError: see `mg_llava.inference.history.read_history`.
        """
        upright = self.assistant.image_processor.apply_exif_orientation
        history = read_history(path, upright, max_pixels=self.max_pixels)
        self.reset()
        self.notes = []
        for number, saved in enumerate(history.pictures, start=1):
            shown = _Shown(f"picture {number} of {path}", saved.picture, None, saved.content)
            shown.found = None if saved.found is None else self._choose(saved.found, shown)
            self._shown.append(shown)
        self._turns = list(history.turns)

    def explain(self, text: str, answer: str, before: Sequence[Turn]) -> Influence:
        """Returns how much each box of the last picture, or each frame of the last video and each of its boxes, spoke
        for `answer` to `text`; see `explain_answer`.

        Args:
            text: the question.
            answer: what it was answered.
            before: the turns before it.

        Raises:
            XTunerError: no picture was shown.
        """
        if not self._shown:
            raise XTunerError(
                "there are no regions to explain: load a picture with --image or /image PATH, or a video, first."
            )
        answered = next(iter(self._turns[len(before) :]), None)
        asked = Turn(text) if answered is None else replace(answered, output=None)
        # pictures shown since are not what was answered
        count = sum(turn.num_pictures for turn in [*before, asked])
        pictures = [shown.picture for shown in self._shown[:count]]
        found = [shown.found for shown in self._shown[:count]]
        return explain_answer(self.assistant, self.assistant.prepare([*before, asked], pictures, found), answer)

    def draw(self, path: str | Path, influence: Influence | None = None) -> None:
        """Saves the last picture, or the frames of the last video in a row, with the boxes that the model was given.

        Args:
            path: target.
            influence: colours say how much each box and frame counted, see `draw_boxes`.

        Raises:
            XTunerError: no picture was shown, or the file's ending names no picture format.
        """
        if not self._shown:
            raise XTunerError("there is no picture to draw: load one with --image or /image PATH first.")
        shown = self._last
        weights = None if influence is None else influence.boxes
        if shown[0].frames:
            # a model without object tokens weighs none of the boxes
            found = [one.found if weights is None or weights[number] else None for number, one in enumerate(shown)]
            pictures = [one.picture for one in shown]
            frames = None if influence is None else influence.frames
            drawn = draw_frames(pictures, found, [one.name.rpartition(", ")[2] for one in shown], frames, weights)
        elif (boxes := shown[0].found) is None:
            drawn = shown[0].picture
        else:
            drawn = draw_boxes(shown[0].picture, boxes, None if weights is None else weights[0])
        try:
            drawn.save(path)
        except (ValueError, OSError) as error:
            raise XTunerError(
                f"the picture cannot be saved as '{path}': {error}; give a path that ends in .png."
            ) from error

    def describe(self) -> dict[str, Any]:
        """Returns pictures and number of boxes, for JSON output."""
        counts = [0 if shown.found is None else len(shown.found.boxes) for shown in self._shown]
        return {"images": [shown.name for shown in self._shown], "boxes": counts}

    def tell_influence(self, influence: Influence) -> list[dict[str, Any]]:
        """Returns a row per box of the last picture, or per frame of the last video and per box of it: ``weight``,
        and what it is of: ``label``, ``frame``.
        """
        shown = self._last
        rows = [
            {"frame": one.name, "weight": round(weight, 4)}
            for one, weight in zip(shown, influence.frames, strict=False)
        ]
        for one, weights in zip(shown, influence.boxes, strict=True):
            of = {"frame": one.name} if one.frames else {}
            labels = one.found.labels if one.found is not None and weights else ()
            rows += [{**of, "label": a, "weight": round(b, 4)} for a, b in zip(labels, weights, strict=True)]
        return rows

    @property
    def _last(self) -> list[_Shown]:
        """The last picture, or the frames of the last video."""
        return self._shown[-max(self._shown[-1].frames, 1) :] if self._shown else []
