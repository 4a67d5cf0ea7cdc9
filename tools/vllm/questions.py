"""The questions of the check: the tiny world's test records in every form that vLLM can be asked in."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

TWO, TEXT, LATER = "two pictures", "text only", "after an earlier answer"


@dataclass(frozen=True)
class Question:
    """What is asked.

    Attributes:
        turns: what is said, user and assistant by turns; ``<image>`` stands at the places of pictures.
        pictures: in the order of their places.
        boxes: of each picture, None for none.
    """

    turns: tuple[str, ...]
    pictures: tuple[Path, ...] = ()
    boxes: tuple[Any, ...] = ()

    def messages(self, image: Any) -> list[dict[str, Any]]:
        """Returns the messages, each picture's part made by ``image(path, boxes)``."""
        pictures = iter(zip(self.pictures, self.boxes, strict=True))
        messages = []
        for number, words in enumerate(self.turns):
            pieces = words.split("<image>")
            parts = [image(*next(pictures)) for _ in pieces[1:]]
            parts.append({"type": "text", "text": "".join(pieces).strip()})
            messages.append({"role": "assistant" if number % 2 else "user", "content": parts})
        return messages


def with_picture(picture: Path, boxes: Any) -> dict[str, Any]:
    """A part with an open picture and its boxes, as `MGLLaVAProcessor` reads it."""
    return {"type": "image", "image": Image.open(picture).convert("RGB"), "boxes": boxes}


def data_url(picture: Path) -> str:
    """A picture's file as a URL."""
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"


def turned(picture: Path) -> str:
    """The same picture as a JPEG whose EXIF tag says that it stands on its side, which boxes do not follow."""
    image, out = Image.open(picture).convert("RGB"), io.BytesIO()
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(out, "JPEG", exif=exif, quality=95)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"


def read_world(world: Path, count: int) -> list[Question]:
    """Returns `count` questions on pictures with boxes, spread over the tiny world's test set."""
    records = json.loads((world / "data" / "test.json").read_text(encoding="utf-8"))
    boxes = {record["image"]: record for record in json.loads((world / "data" / "boxes.json").read_text())}
    asked = [record for record in records if boxes.get(record["image"], {}).get("boxes")]
    step = max(len(asked) // count, 1)
    return [
        Question(
            (f"<image>\n{record['question']}",),
            (world / "data" / record["image"],),
            (_boxes(boxes[record["image"]]),),
        )
        for record in asked[::step][:count]
    ]


def _boxes(record: dict[str, Any]) -> dict[str, Any]:
    return {key: record[key] for key in ("boxes", "labels", "scores") if key in record}


def without_boxes(question: Question) -> Question:
    """The same with no boxes."""
    return Question(question.turns, question.pictures, tuple(None for _ in question.boxes))


def other_boxes(question: Question) -> Question:
    """The same with other boxes on the same picture: every second one, all moved by two pixels."""
    moved = tuple(
        {"boxes": [[x0 + 2, y0 + 2, x1 + 2, y1 + 2] for x0, y0, x1, y1 in found["boxes"][::2]]}
        for found in question.boxes
    )
    return Question(question.turns, question.pictures, moved)


def pairs(questions: list[Question]) -> list[Question]:
    """Two pictures a question, the second of every other one without boxes."""
    return [
        Question(
            (f"<image>\n<image>\n{first.turns[0].split(chr(10))[1]}",),
            first.pictures + second.pictures,
            (first.boxes[0], second.boxes[0] if number % 2 else None),
        )
        for number, (first, second) in enumerate(zip(questions[::2], questions[1::2], strict=False))
    ]


def texts(questions: list[Question]) -> list[Question]:
    """The same words without pictures."""
    return [Question((question.turns[0].split("\n")[1],)) for question in questions]


def later(questions: list[Question]) -> list[Question]:
    """A first question with its answer, then another one."""
    return [
        Question((first.turns[0], "a red ring", second.turns[0].split("\n")[1]), first.pictures, first.boxes)
        for first, second in zip(questions, questions[1:] + questions[:1], strict=True)
    ]
