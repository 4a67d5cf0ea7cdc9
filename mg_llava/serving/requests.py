"""Chat-completion requests as OpenAI's clients send them, to prompts and samplings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from mg_llava.boxes.selection import PictureBoxes, clip_boxes
from mg_llava.inference.assistant import Assistant
from mg_llava.inference.chat import Detector
from mg_llava.inference.messages import read_messages
from mg_llava.inference.prompts import Prompt, as_picture_boxes
from mg_llava.serving.generation.sampling import Sampling
from mg_llava.serving.pictures import read_picture_url
from mg_llava.serving.settings import Limits
from xtuner.data.records.messages import check_text, picture_address
from xtuner.errors import XTunerError

_UNSUPPORTED = ("tools", "functions", "response_format", "logprobs", "audio", "logit_bias")
_MOST_STOPS = 4


@dataclass(frozen=True)
class ChatRequest:
    """A request that was understood.

    Attributes:
        prompt: what the model is asked.
        sampling: how it answers.
        stream: the answer is sent piece by piece.
        with_usage: a streamed answer ends with its token counts.
        found: the boxes of each picture.
    """

    prompt: Prompt
    sampling: Sampling
    stream: bool
    with_usage: bool
    found: tuple[PictureBoxes | None, ...]


def read_request(body: Any, assistant: Assistant, limits: Limits, detector: Detector | None) -> ChatRequest:
    """Reads the JSON body of ``/v1/chat/completions``.

    Beside OpenAI's own fields an image part may have ``boxes`` (see `as_picture_boxes`), and the body ``detect_boxes``:
    false keeps the server's detector from looking at pictures without boxes.

    Raises:
        XTunerError: a field is absent, of another kind or not supported.
    """
    if not isinstance(body, Mapping) or not isinstance(body.get("messages"), list):
        raise XTunerError("the body is not a JSON object with a list 'messages'.")
    _check_texts(body)
    for name in _UNSUPPORTED:
        if body.get(name):
            raise XTunerError(f"'{name}' is not supported by this server: leave it out.")
    if _number(body, "n", 1, 1, 1, int) != 1:
        raise XTunerError("'n' above 1 is not supported: send the request several times.")
    detects = detector if body.get("detect_boxes", True) else None
    count = 0

    def open_image(part: Mapping[str, Any]) -> tuple[Image.Image, PictureBoxes | None]:
        nonlocal count
        count += 1
        if count > limits.max_pictures:
            raise XTunerError(
                f"the request has more than {limits.max_pictures} pictures, which is the limit: send fewer."
            )
        picture = read_picture_url(picture_address(part), limits, assistant.image_processor.apply_exif_orientation)
        found = as_picture_boxes(part.get("boxes"))
        if found is None:
            return picture, None if detects is None else detects([picture])[0]
        _, inside = clip_boxes(found.boxes, *picture.size)
        if not inside.all():
            raise XTunerError(
                f"{int((~inside).sum())} of the {len(inside)} boxes of picture {count} lie outside its "
                f"{picture.width} x {picture.height} pixels: expected [x0, y0, x1, y1] in pixels of the picture."
            )
        return picture, found

    continues = bool(body.get("continue_final_message", False))
    conversation = read_messages(body["messages"], open_image, continues)
    if conversation.turns[-1].output is not None:
        raise XTunerError("the last message is an answer: end with the user's, or set continue_final_message.")
    prompt = assistant.prepare(conversation.turns, conversation.pictures, conversation.found, conversation.answer_start)
    return ChatRequest(
        prompt=prompt,
        sampling=_sampling(body, assistant, limits),
        stream=bool(body.get("stream", False)),
        with_usage=bool((body.get("stream_options") or {}).get("include_usage", False)),
        found=tuple(conversation.found),
    )


def _check_texts(body: Mapping[str, Any]) -> None:
    """Refuses half a character anywhere in a request."""
    rest: list[Any] = [body]
    while rest:
        value = rest.pop()
        if isinstance(value, str):
            check_text(value, "the request")
        elif isinstance(value, Mapping):
            rest += [*value.keys(), *value.values()]
        elif isinstance(value, list):
            rest += value


def _sampling(body: Mapping[str, Any], assistant: Assistant, limits: Limits) -> Sampling:
    asked = body.get("max_completion_tokens", body.get("max_tokens"))
    most = limits.max_new_tokens if asked is None else asked
    if isinstance(most, bool) or not isinstance(most, int) or most < 1:
        raise XTunerError(f"'max_tokens' is {most!r}: expected a whole number of at least 1.")
    stop = body.get("stop") or []
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or len(stops) > _MOST_STOPS or not all(isinstance(text, str) for text in stops):
        raise XTunerError(f"'stop' is {stop!r}: expected a text or up to {_MOST_STOPS} of them.")
    seed = body.get("seed")
    if seed is not None and not isinstance(seed, int):
        raise XTunerError(f"'seed' is {seed!r}: expected a whole number.")
    return Sampling(
        max_new_tokens=min(most, limits.max_new_tokens),
        temperature=_number(body, "temperature", 0.0, 0.0, 2.0, float),
        top_p=_number(body, "top_p", 1.0, 0.0, 1.0, float),
        stop=(*stops, *assistant.template.stop_words),
        seed=seed,
        presence_penalty=_number(body, "presence_penalty", 0.0, -2.0, 2.0, float),
        frequency_penalty=_number(body, "frequency_penalty", 0.0, -2.0, 2.0, float),
    )


def _number(body: Mapping[str, Any], name: str, default: Any, least: float, most: float, kind: type) -> Any:
    value = body.get(name)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise XTunerError(f"'{name}' is {value!r}: expected a number from {least:g} to {most:g}.")
    return kind(value)
