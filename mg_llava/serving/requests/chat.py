"""Chat-completion requests as OpenAI's clients send them, to prompts and samplings."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from mg_llava.boxes.selection import PictureBoxes
from mg_llava.inference.messages import read_messages
from mg_llava.inference.prompts import as_picture_boxes
from mg_llava.serving.generation.engine import Engine
from mg_llava.serving.generation.sampling import Sampling
from mg_llava.serving.generation.tickets import Place
from mg_llava.serving.requests.body import read_body
from mg_llava.serving.requests.detecting import SharedDetector
from mg_llava.serving.requests.fields import ChatFields, read_fields
from mg_llava.serving.requests.pictures import (
    check_boxes,
    open_content,
    read_content,
    read_video,
    read_video_content,
)
from mg_llava.serving.requests.settings import Limits
from mg_llava.videos.shown import VideoFrames
from xtuner.data.records.messages import picture_address
from xtuner.errors import XTunerError


@dataclass(frozen=True)
class ChatRequest:
    """A request that was understood.

    Attributes:
        prompt: what the model is asked, in the form of the engine.
        sampling: how it answers.
        stream: the answer is sent piece by piece.
        with_usage: a streamed answer ends with its token counts.
        ignored: fields that this server does not know.
    """

    prompt: Any
    sampling: Sampling
    stream: bool
    with_usage: bool
    ignored: tuple[str, ...]


class UnknownModel(XTunerError):
    """A request names a model that is not here."""


class RequestReader:
    """Reads requests in the threads of a server.

    Args:
        engine: makes the prompts.
        model_name: how the model is called.
        limits: of the server.
        detector: finds boxes in pictures that come without; None = they have none.
    """

    def __init__(self, engine: Engine, model_name: str, limits: Limits, detector: SharedDetector | None = None) -> None:
        self.engine = engine
        self.model_name = model_name
        self.limits = limits
        self.detector = detector

    def read(self, content: bytes, place: Place) -> ChatRequest:
        """Reads the body of ``/v1/chat/completions``.

        Beside OpenAI's own fields there are parts of type ``video_url``, and an image part may have ``boxes`` (see
        `as_picture_boxes`); see `ChatFields` for those of the body.

        Raises:
            XTunerError: a field is absent, of another kind or not supported, or something is beyond a limit.
            UnknownModel: the request asks for another model.
            Departed, Overloaded, ReadingError: see `Place.check`.
        """
        place.reads_until = time.monotonic() + self.limits.max_read
        place.check()
        fields = read_fields(read_body(content, self.limits), self.limits)
        self.check_model(fields.model)
        detects = self.detector if fields.detect_boxes in (None, True) else None
        files: list[bytes] = []
        videos: list[tuple[bytes, VideoFrames]] = []

        def open_image(part: Mapping[str, Any]) -> tuple[Image.Image, PictureBoxes | None]:
            place.check()
            files.append(read_content(picture_address(part), self.limits))
            return self._open_image(part, files[-1], detects, place)

        def open_video(part: Mapping[str, Any]) -> VideoFrames:
            place.check()
            if self.engine.no_videos:
                raise XTunerError(self.engine.no_videos)
            videos.append(self._open_video(part, detects, place))
            return videos[-1][1]

        conversation = read_messages(fields.messages, open_image, bool(fields.continue_final_message), open_video)
        if conversation.turns[-1].output is not None:
            raise XTunerError("the last message is an answer: end with the user's, or set continue_final_message.")
        place.check()
        prompt = self.engine.prepare(conversation, files, videos)
        place.check()
        return ChatRequest(
            prompt=prompt,
            sampling=read_sampling(fields, self.limits, self.engine.maker.template.stop_words),
            stream=bool(fields.stream),
            with_usage=bool(fields.stream_options and fields.stream_options.include_usage),
            ignored=fields.unknown,
        )

    def check_model(self, name: str | None) -> None:
        """Refuses the name of another model.

        Raises:
            UnknownModel: that is not how the model is called.
        """
        if name not in (None, self.model_name):
            raise UnknownModel(f"there is no model {str(name)[:60]!r}: this server has {self.model_name!r}.")

    def _open_image(
        self, part: Mapping[str, Any], file: bytes, detects: SharedDetector | None, place: Place
    ) -> tuple[Image.Image, PictureBoxes | None]:
        picture = open_content(file, self.limits, self.engine.maker.image_processor.apply_exif_orientation)
        place.check()
        found = as_picture_boxes(part.get("boxes"))
        if found is None:
            return picture, None if detects is None else detects.look(picture, place.check)
        check_boxes(found, picture.size)
        return picture, found

    def _open_video(
        self, part: Mapping[str, Any], detects: SharedDetector | None, place: Place
    ) -> tuple[bytes, VideoFrames]:
        if part.get("boxes") is not None:
            raise XTunerError("a video part has 'boxes': send pictures instead, one a frame, each with its own.")
        content = read_video_content(picture_address(part))
        shown = read_video(io.BytesIO(content), self.limits, place.check)
        if detects is not None:
            shown = shown.with_boxes([detects.look(picture, place.check) for picture in shown.pictures])
        return content, shown


def read_sampling(fields: ChatFields, limits: Limits, stop_words: Sequence[str]) -> Sampling:
    """Returns how an answer is made.

    Args:
        fields: of a request.
        limits: of the server; they bound the length.
        stop_words: of the template, beside those of the request.
    """
    asked = fields.max_tokens if fields.max_completion_tokens is None else fields.max_completion_tokens
    return Sampling(
        max_new_tokens=limits.max_new_tokens if asked is None else min(asked, limits.max_new_tokens),
        temperature=fields.temperature or 0.0,
        top_p=1.0 if fields.top_p is None else fields.top_p,
        stop=(*fields.stops, *stop_words),
        seed=fields.seed,
        presence_penalty=fields.presence_penalty or 0.0,
        frequency_penalty=fields.frequency_penalty or 0.0,
    )
