"""What the page's buttons do; nothing here knows of Gradio."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mg_llava.boxes.drawing import draw_boxes
from mg_llava.boxes.selection import PictureBoxes, no_boxes
from mg_llava.inference.chat import Detector
from mg_llava.inference.history import History, boxes_as_json, history_text, read_history
from mg_llava.inference.messages import IMAGE_PART, VIDEO_PART, Conversation, read_messages
from mg_llava.inference.prompts import as_picture_boxes, check_finite
from mg_llava.pictures.open import num_frames, open_picture
from mg_llava.serving.generation.engine import Engine
from mg_llava.serving.generation.sampling import Sampling
from mg_llava.serving.generation.text import TextAssembler
from mg_llava.serving.page.figures import Figure, boxed_frames, data_url, figures_of
from mg_llava.serving.requests.body import check_boxes, check_size
from mg_llava.serving.requests.chat import read_sampling
from mg_llava.serving.requests.fields import read_fields
from mg_llava.serving.requests.settings import Limits
from mg_llava.videos.shown import VideoFrames
from xtuner.errors import XTunerError, counted
from xtuner.json_values import JSONFault, parse_json

Turns = list[list[str]]
"""Questions and answers of a conversation."""


@dataclass(frozen=True)
class Given:
    """What stands in the fields beside the chat.

    Attributes:
        path: of the picture's file; None = no picture.
        typed: boxes of the visitor's own as JSON; "" = the detector's.
        use_boxes: boxes become object tokens.
        temperature: 0 = the likeliest token each time.
        max_tokens: of the answer; None = the server's limit.
        video: path of a video's file, which then counts instead of the picture; None = no video.
    """

    path: str | None = None
    typed: str = ""
    use_boxes: bool = True
    temperature: float = 0.0
    max_tokens: int | None = None
    video: str | None = None


@dataclass(frozen=True)
class Loaded:
    """A saved chat, as it is put into the page's fields; see `Given`."""

    turns: Turns
    path: str | None
    typed: str
    use_boxes: bool


class Page:
    """What the page's buttons do; each raises `XTunerError` with a sentence for the visitor.

    Args:
        engine: answers.
        limits: of the server.
        detector: finds boxes; None = pictures have none but those that are typed or drawn.
        folder: for the pictures of chats that are loaded; None = the system's for temporary files.
    """

    def __init__(self, engine: Engine, limits: Limits, detector: Detector | None, folder: str | None = None) -> None:
        self.engine = engine
        self.limits = limits
        self.detector = detector
        self.folder = folder

    def show(self, given: Given) -> tuple[dict[str, Any] | None, str, list[Figure]]:
        """Returns the picture with its boxes drawn, if they are used, a line about it, and the frames of a video.

        The picture is ``{"src", "alt", "width", "height"}``: a data URL, a text for those who do not see it, and the
        size in pixels that boxes are given in. It is None where a video is shown, else there are no frames.
        """
        if given.video:
            video, beyond = self._frames(given)
            return None, *figures_of(video, beyond, given.typed)
        if not given.path:
            return None, "no picture", []
        picture, found, outside = self._open(given)
        count = counted(0 if found is None else len(found.boxes), "boxes")
        notes = [f"{picture.width} x {picture.height} px", count]
        if outside:
            notes.append(f"left out: {counted(outside, 'boxes')} outside")
        if (frames := num_frames(given.path)) > 1:
            notes.append(f"an animation of {frames} frames: the first is shown")
        # a small picture is enlarged, with boxes or without
        drawn = draw_boxes(picture, no_boxes() if found is None else found)
        shown = {"src": data_url(drawn), "alt": f"the picture with {count}"}
        return {**shown, "width": picture.width, "height": picture.height}, ", ".join(notes), []

    def add_box(self, given: Given, corners: Sequence[Any]) -> str:
        """Returns the visitor's boxes, as JSON, with one more.

        Args:
            given: the fields.
            corners: x0, y0, x1, y1 in pixels of the picture, in any order of the two corners.

        Raises:
            XTunerError: there is no picture, or the corners make no box in it.
        """
        if given.video or not given.path:
            raise XTunerError("there is no picture to draw a box on: choose one first.")
        box = [_number(corner) for corner in corners]
        if len(box) != 4 or not all(map(math.isfinite, box)):
            raise XTunerError("a box needs four numbers: left, top, right and bottom in pixels of the picture.")
        picture, *_ = self._open(Given(given.path, use_boxes=False))
        xs, ys = (sorted(min(max(value, 0), side) for value in pair) for pair, side in _axes(box, picture.size))
        if xs[0] == xs[1] or ys[0] == ys[1]:
            raise XTunerError(
                f"the box has no area within the picture of {picture.width} x {picture.height} pixels: give two "
                "corners that lie apart."
            )
        found = self._read_boxes(given.typed) if given.typed.strip() else None
        before = no_boxes() if found is None else found
        more = PictureBoxes(
            np.concatenate([before.boxes, np.array([[xs[0], ys[0], xs[1], ys[1]]], np.float32).round(1)]),
            (*before.labels, str(len(before.labels))),
            np.concatenate([before.scores, np.ones(1, np.float32)]),
        )
        typed = json.dumps(boxes_as_json(more))
        self._read_boxes(typed)
        return typed

    def answer(self, given: Given, turns: Turns, question: str) -> Iterator[tuple[Turns, str]]:
        """Yields the conversation and a line about the answer (that it was cut) while the answer comes."""
        sampling = self._sampling(given)
        prompt, _ = self._prompt(given, turns, question)
        for text, note in self._stream(prompt, sampling):
            yield [*turns, [question, text]], note

    def answer_again(
        self, given: Given, turns: Turns, number: int, question: str | None = None
    ) -> Iterator[tuple[Turns, str]]:
        """Yields as `answer` does; a question is asked anew, and what came after it is forgotten.

        Args:
            given: the fields.
            turns: of the conversation.
            number: of the question, from 0; negative ones count from the end.
            question: what is asked instead; None = the same.
        """
        if not turns or not -len(turns) <= number < len(turns):
            raise XTunerError("there is no such question in this chat: ask one first.")
        number %= len(turns)
        yield from self.answer(given, turns[:number], turns[number][0] if question is None else question)

    def compare(self, given: Given, question: str) -> Iterator[tuple[str, str]]:
        """Yields the answers with and without objects while they come."""
        sampling = self._sampling(given)
        both = [replace(given, use_boxes=boxes) for boxes in (True, False)]
        streams = [self._stream(self._prompt(one, [], question)[0], sampling) for one in both]
        texts = ["", ""]
        for number, stream in enumerate(streams):
            for text, _ in stream:
                texts[number] = text
                yield texts[0], texts[1]

    def explain(self, given: Given, question: str) -> tuple[str, Image.Image | None, list[list[Any]]]:
        """Returns the answer, the picture with its boxes coloured, and a table of label and weight."""
        if self.engine.unexplained:
            raise XTunerError(self.engine.unexplained)
        if given.video:
            raise XTunerError("which regions mattered is shown for pictures, not for videos: choose a picture.")
        given = replace(given, use_boxes=True)
        prompt, found = self._prompt(given, [], question)
        answer = ""
        for text, _ in self._stream(prompt, self._sampling(given)):
            answer = text
        if found is None or given.path is None or not answer:
            raise XTunerError(
                "there is nothing to explain: give a picture in which boxes are found, and ask a question."
            )
        weights = self.engine.explain(prompt, answer)
        picture, *_ = self._open(Given(given.path, use_boxes=False))
        rows = sorted(zip(found.labels, weights, strict=True), key=lambda row: -abs(row[1]))
        return answer, draw_boxes(picture, found, weights), [[label, round(weight, 3)] for label, weight in rows]

    def save(self, given: Given, turns: Turns) -> str:
        """Returns the conversation with its picture and boxes as the text of a file, see `history_text`.

        Raises:
            XTunerError: it is about a video, or has no answer yet.
        """
        if given.video:
            raise XTunerError("a chat about a video cannot be saved, only chats about pictures can.")
        asked = self._conversation(given, turns, None)
        pictures = []
        if given.path:
            content, found = Path(given.path).read_bytes(), asked.found[0] if asked.found else None
            pictures.append((content, found))
        return history_text(asked.turns if turns else (), pictures, self.limits.max_upload)

    def load(self, path: str) -> Loaded:
        """Returns a conversation that was saved here or by ``xtuner chat``; the file may be anybody's."""
        upright = self.engine.maker.image_processor.apply_exif_orientation
        history = read_history(path, upright, self.limits.max_upload, self.limits.max_pixels)
        if len(history.pictures) > 1 or any(turn.num_pictures for turn in history.turns[1:]):
            raise XTunerError(
                "the page shows one picture, before the first question, and this chat has others: go on with "
                "`xtuner chat FOLDER --load FILE`."
            )
        turns = [[_words(turn.parts), turn.output or ""] for turn in history.turns]
        self._check_text(turns)
        return Loaded(turns, *self._unpack(history))

    def _unpack(self, history: History) -> tuple[str | None, str, bool]:
        """The picture as a file, its boxes as JSON, and whether they are used."""
        if not history.pictures:
            return None, "", True
        saved = history.pictures[0]
        handle, path = tempfile.mkstemp(prefix="loaded_", suffix=".picture", dir=self.folder)
        with os.fdopen(handle, "wb") as file:
            file.write(saved.content)
        typed = "" if saved.found is None else json.dumps(boxes_as_json(saved.found))
        return path, typed, saved.found is not None

    def _open(self, given: Given) -> tuple[Image.Image, PictureBoxes | None, int]:
        """The picture, its boxes that become object tokens, and how many lie outside."""
        maker = self.engine.maker
        picture = open_picture(given.path or "", maker.image_processor.apply_exif_orientation, self.limits.max_pixels)
        if not given.use_boxes:
            return picture, None, 0
        if given.typed.strip():
            found = self._read_boxes(given.typed)
        else:
            found = None if self.detector is None else self.detector([picture])[0]
        if found is None:
            return picture, None, 0
        return picture, *maker.boxes.choose(found, picture.size)

    def _frames(self, given: Given) -> tuple[VideoFrames, int]:
        """The frames that are shown, with the boxes that become object tokens, and how many lie outside."""
        if self.engine.no_videos:
            raise XTunerError(self.engine.no_videos)
        detector = self.detector if given.use_boxes else None
        return boxed_frames(given.video or "", self.limits, detector, self.engine.maker.boxes)

    def _read_boxes(self, typed: str) -> PictureBoxes | None:
        content = typed.encode("utf-8", "replace")
        check_size(content, self.limits)
        try:
            boxes = parse_json(content)
        except JSONFault as error:
            raise XTunerError(
                f"the boxes are not JSON: {error}. Expected [[x0, y0, x1, y1], ...] in pixels."
            ) from error
        check_boxes([boxes], self.limits)
        found = as_picture_boxes(boxes)
        if found is not None:
            check_finite(found)
        return found

    def _sampling(self, given: Given) -> Sampling:
        """By the fields of a request, so that the page takes what the endpoint takes."""
        asked = {"messages": [], "temperature": given.temperature, "max_tokens": given.max_tokens}
        fields = read_fields(asked, self.limits)
        return read_sampling(fields, self.limits, self.engine.maker.template.stop_words)

    def _check_text(self, turns: Sequence[Sequence[str]]) -> None:
        if (count := sum(map(len, chain.from_iterable(turns)))) > self.limits.max_text:
            raise XTunerError(
                f"the chat has {count:,} characters, at most {self.limits.max_text:,} are taken: start anew."
            )

    def _conversation(
        self,
        given: Given,
        turns: Turns,
        question: str | None,
        videos: list[tuple[bytes, VideoFrames]] | None = None,
    ) -> Conversation:
        """What is asked; the file of a video and its frames are added to `videos`."""
        if not turns and question is None:
            return Conversation()
        said = [*turns, *([] if question is None else [[question]])]
        messages: list[dict[str, Any]] = [
            {"role": role, "content": [{"type": "text", "text": words}]}
            for turn in said
            for role, words in zip(("user", "assistant"), turn, strict=False)
        ]
        if given.video or given.path:
            messages[0]["content"].insert(0, VIDEO_PART if given.video else IMAGE_PART)

        def open_video(_: Any) -> VideoFrames:
            shown = self._frames(given)[0]
            if videos is not None:
                videos.append((Path(given.video or "").read_bytes(), shown))
            return shown

        return read_messages(messages, lambda _: self._open(given)[:2], open_video=open_video)

    def _prompt(self, given: Given, turns: Turns, question: str) -> tuple[Any, PictureBoxes | None]:
        if not question.strip():
            raise XTunerError("the question is empty: say something.")
        self._check_text([*turns, [question]])
        videos: list[tuple[bytes, VideoFrames]] = []
        asked = self._conversation(given, turns, question, videos)
        files = [Path(given.path).read_bytes()] if given.path and not given.video else []
        prompt = self.engine.prepare(asked, files, videos)
        return prompt, asked.found[0] if asked.found else None

    def _stream(self, prompt: Any, sampling: Sampling) -> Iterator[tuple[str, str]]:
        """The text so far, and at the end a line about it."""
        assembler = TextAssembler(self.engine.maker.tokenizer, sampling.stop)
        ticket = self.engine.submit(prompt, sampling)
        try:
            for token in ticket:
                if assembler.add(token):
                    yield assembler.text, ""
                if assembler.stopped:
                    break
            assembler.finish()
            was_cut = ticket.reason == "length" and not assembler.stopped
            yield assembler.text, cut_note(len(ticket.ids)) if was_cut else ""
        finally:
            # also where the visitor closed the page
            ticket.cancel()


def cut_note(count: int) -> str:
    """Returns the line about an answer that did not end by itself."""
    return f"The answer was cut after {counted(count, 'tokens')}: allow more tokens, or ask more briefly."


def digest(path: str | None) -> str:
    """Returns what tells pictures and videos apart by their files' bytes; "" for none."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else ""


def _words(parts: Sequence[Any]) -> str:
    return "".join(part for part in parts if isinstance(part, str)).strip()


def _axes(box: Sequence[float], size: tuple[int, int]) -> list[tuple[list[float], int]]:
    return [([box[0], box[2]], size[0]), ([box[1], box[3]], size[1])]


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
