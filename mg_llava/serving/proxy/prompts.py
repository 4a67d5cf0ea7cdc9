"""A conversation as it is sent to vLLM: messages whose pictures and videos have their boxes in their URLs, and how long
it is.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError

from mg_llava.boxes.selection import PictureBoxes
from mg_llava.boxes.urls import with_boxes
from mg_llava.hf import MGLLaVAProcessor, check_exported
from mg_llava.inference.history import boxes_as_json
from mg_llava.inference.messages import Conversation
from mg_llava.inference.prompts import PromptMaker, PromptSize
from mg_llava.serving.vllm.videos import with_said
from mg_llava.videos import VideoFrames
from xtuner.data.records.messages import is_video
from xtuner.data.text.templates import Place
from xtuner.errors import XTunerError, counted


@dataclass(frozen=True)
class SentPrompt:
    """What is asked.

    Attributes:
        messages: as OpenAI's protocol has them.
        continues: the last one is the beginning of the answer.
        size: of what it is made.
    """

    messages: list[dict[str, Any]]
    continues: bool
    size: PromptSize


class PromptSender:
    """Makes what is sent, by the processor of an exported folder, which needs no weights.

    Args:
        folder: exported.

    Raises:
        XTunerError: it is no such folder.
    """

    def __init__(self, folder: Path) -> None:
        check_exported(folder)
        self.folder = folder
        self.processor = MGLLaVAProcessor.from_pretrained(str(folder))

    @property
    def maker(self) -> PromptMaker:
        """The processor's."""
        return self.processor.maker

    def prepare(
        self, asked: Conversation, files: Sequence[bytes], videos: Sequence[tuple[bytes, VideoFrames]] = ()
    ) -> SentPrompt:
        """Returns what is sent; see `Engine.prepare`. Of a video its own file goes, with the numbers of its frames.

        Raises:
            XTunerError: vLLM could not tell a text from the template's own words, or a picture has too many boxes.
        """
        ids = self.processor.text_ids(self.render(asked))
        frames = [one is Place.FRAME for turn in asked.turns for one in turn.parts if isinstance(one, Place)]
        boxes = [found for found, is_frame in zip(asked.found, frames, strict=True) if not is_frame]
        pictures = iter([_image_part(*pair) for pair in zip(files, boxes, strict=True)])
        clips = iter([_video_part(*pair) for pair in videos])
        num_frames = sum(len(shown.pictures) for _, shown in videos)
        if num_frames != sum(frames):
            raise XTunerError(
                f"the conversation has {counted(sum(frames), 'frames')} of videos, but the videos given have "
                f"{num_frames}: give each video with its frames."
            )
        texts = len(ids) - (len(frames) - num_frames) - len(videos)
        return SentPrompt(
            messages=_messages(asked, lambda part: next(clips if is_video(part) else pictures)),
            continues=bool(asked.answer_start),
            size=PromptSize(texts, len(frames) - num_frames, num_frames, sum(map(self._num_objects, asked.found))),
        )

    def render(self, asked: Conversation) -> str:
        """Returns the text that vLLM makes of a conversation.

        Raises:
            XTunerError: see `prepare`.
        """
        messages = _messages(asked, lambda part: {"type": "video" if is_video(part) else "image"})
        try:
            return str(self.processor.apply_chat_template(messages, continue_final_message=bool(asked.answer_start)))
        except TemplateError as error:
            raise XTunerError(
                "a text of the request holds a special token, <image> or the words at which an answer begins, and "
                "vLLM, which answers here, reads a conversation as one text: take them out, or serve with "
                "--backend own."
            ) from error

    def _num_objects(self, found: PictureBoxes | None) -> int:
        if found is None or not self.processor.with_objects:
            return 0
        return len(self.maker.boxes(*found, training=False).boxes)


def _messages(asked: Conversation, sent: Callable[[Mapping[str, Any]], dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "role": message.role,
            "content": [
                {"type": "text", "text": part} if isinstance(part, str) else sent(part) for part in message.parts
            ],
        }
        for message in asked.messages
    ]


def _image_part(file: bytes, found: PictureBoxes | None) -> dict[str, Any]:
    # the kind of file is told by its content
    url = f"data:image/png;base64,{base64.b64encode(file).decode()}"
    return {"type": "image_url", "image_url": {"url": with_boxes(url, None if found is None else boxes_as_json(found))}}


def _video_part(file: bytes, shown: VideoFrames) -> dict[str, Any]:
    url = f"data:video/mp4;base64,{base64.b64encode(file).decode()}"
    return {"type": "video_url", "video_url": {"url": with_said(url, shown)}}
