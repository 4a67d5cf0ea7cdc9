"""A conversation as it is sent to vLLM: messages whose pictures have their boxes in their URLs, and how long it is."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError

from mg_llava.boxes.selection import PictureBoxes
from mg_llava.hf import MGLLaVAProcessor, check_exported
from mg_llava.inference.history import boxes_as_json
from mg_llava.inference.messages import Conversation
from mg_llava.inference.prompts import PromptMaker
from mg_llava.serving.vllm.boxed import with_boxes
from xtuner.errors import XTunerError


@dataclass(frozen=True)
class SentPrompt:
    """What is asked.

    Attributes:
        messages: as OpenAI's protocol has them.
        continues: the last one is the beginning of the answer.
        texts: tokens of text.
        pictures: number of pictures.
        objects: object tokens of all of them.
    """

    messages: list[dict[str, Any]]
    continues: bool
    texts: int
    pictures: int
    objects: int


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

    def prepare(self, asked: Conversation, files: Sequence[bytes]) -> SentPrompt:
        """Returns what is sent; see `Engine.prepare`.

        Raises:
            XTunerError: vLLM could not tell a text from the template's own words, or a picture has too many boxes.
        """
        places = self._places(asked)
        ids = self.processor.text_ids(self.render(asked))
        pictures = [_image_part(*pair) for pair in zip(files, asked.found, strict=True)]
        return SentPrompt(
            messages=_messages(asked, pictures),
            continues=bool(asked.answer_start),
            texts=len(ids) - places,
            pictures=places,
            objects=sum(map(self._num_objects, asked.found)),
        )

    def render(self, asked: Conversation) -> str:
        """Returns the text that vLLM makes of a conversation.

        Raises:
            XTunerError: see `prepare`.
        """
        messages = _messages(asked, [{"type": "image"}] * self._places(asked))
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

    def _places(self, asked: Conversation) -> int:
        return len(asked.pictures)


def _messages(asked: Conversation, pictures: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    coming = iter(pictures)
    return [
        {
            "role": message.role,
            "content": [
                {"type": "text", "text": part} if isinstance(part, str) else next(coming) for part in message.parts
            ],
        }
        for message in asked.messages
    ]


def _image_part(file: bytes, found: PictureBoxes | None) -> dict[str, Any]:
    # the kind of file is told by its content
    url = f"data:image/png;base64,{base64.b64encode(file).decode()}"
    return {"type": "image_url", "image_url": {"url": with_boxes(url, None if found is None else boxes_as_json(found))}}
