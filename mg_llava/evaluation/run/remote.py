"""Asking an OpenAI-compatible endpoint the questions of a benchmark, in place of a model in this process."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from PIL import Image

from mg_llava.boxes.selection import BoxSelection, PictureBoxes
from mg_llava.boxes.urls import with_boxes
from mg_llava.evaluation.benchmarks.base import Benchmark
from mg_llava.evaluation.benchmarks.records import Picture, Prediction, Question
from mg_llava.evaluation.run.showing import Shown, show, unanswered
from mg_llava.pictures.preprocess import ImageProcessor
from xtuner.data.text.templates import Place, Turn
from xtuner.errors import XTunerError
from xtuner.evaluation.endpoint import Endpoint, RefusedError, in_parallel

_READ_EVERYWHERE = ("JPEG", "PNG", "WEBP", "GIF")
"""Formats that endpoints read; pictures of others are sent as PNG."""
_REFUSED_BEFORE_ALL = 16
"""An endpoint that refuses so many requests and answers none will refuse the others too."""


class EndpointAsker:
    """Asks an endpoint; a request that it refuses, as too long perhaps, is that question's error.

    Args:
        endpoint: answers.
        image_processor: opens pictures, as for a model in this process.
        boxes: which boxes are sent; None = none.
        boxes_in_url: they stand in the picture's URL, as the plug-in for vLLM reads them, instead of beside it, as this
            project's server does.
        settings: of the requests besides the length, e.g. ``{"temperature": 0}``.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        image_processor: ImageProcessor,
        boxes: BoxSelection | None,
        settings: Mapping[str, Any],
        boxes_in_url: bool = False,
    ) -> None:
        self.endpoint = endpoint
        self.image_processor = image_processor
        self.boxes = boxes
        self.boxes_in_url = boxes_in_url
        self.settings = dict(settings)

    def sample(self, seed: int, temperature: float, top_p: float) -> None:
        """See `Asker.sample`: the endpoint draws, with the seed that requests carry."""
        self.settings |= {"temperature": temperature, "top_p": top_p, "seed": seed}

    def facts(self, benchmark: Benchmark) -> dict[str, Any]:
        """Returns the endpoint, the model, and what requests say besides the question."""
        return {
            "endpoint": self.endpoint.url,
            "model": self.endpoint.model,
            "boxes_sent": self.boxes is not None,
            **({"boxes_in_url": True} if self.boxes_in_url else {}),
            "generation": {**self.settings, "max_tokens": benchmark.max_new_tokens},
        }

    def ask(
        self, benchmark: Benchmark, questions: Sequence[Question], stop: Callable[[], bool]
    ) -> Iterator[list[Prediction]]:
        """See `Asker.ask`; predictions come as the answers do, in any order.

        Raises:
            XTunerError: the endpoint does not answer, or refuses the first requests all.
        """
        answered = refused = 0

        def until_stopped() -> Iterator[Question]:
            for question in questions:
                if stop():
                    return
                yield question

        def work(question: Question) -> Prediction:
            return self._ask(benchmark, question)

        try:
            for _, prediction in in_parallel(work, until_stopped(), self.endpoint.parallel):
                yield [prediction]
                answered += prediction.error is None
                refused += prediction.error is not None
                if not answered and refused >= _REFUSED_BEFORE_ALL:
                    raise XTunerError(f"none of {refused} questions could be asked; the last: {prediction.error}")
        except XTunerError as error:
            raise XTunerError(
                f"benchmark '{benchmark.name}': {error} Its answers so far are kept: run the command again to go on."
            ) from error

    def _ask(self, benchmark: Benchmark, question: Question) -> Prediction:
        shown = show(benchmark, question, self.image_processor)
        if shown.error is not None:
            return unanswered(question, shown.words, shown.error)
        messages = self._messages(shown.turns, shown)
        beside = self.boxes is not None and not self.boxes_in_url
        settings = {**self.settings, "detect_boxes": False} if beside else self.settings
        try:
            output = self.endpoint.complete(messages, benchmark.max_new_tokens, **settings)
        except RefusedError as error:
            return unanswered(question, shown.words, str(error))
        return benchmark.predict(question, shown.words, output)

    def _messages(self, turns: Sequence[Turn], shown: Shown) -> list[dict[str, Any]]:
        """The conversation, words and pictures in their order."""
        messages: list[dict[str, Any]] = []
        pictures = iter(zip(shown.pictures, shown.opened, shown.found, strict=True))
        for turn in turns:
            parts: list[dict[str, Any]] = []
            for part in turn.parts:
                if isinstance(part, Place):
                    parts.append(self._picture(*next(pictures)))
                elif part.strip("\n"):
                    # servers put a line break between parts
                    parts.append({"type": "text", "text": part.strip("\n")})
            messages += [{"role": "system", "content": turn.system}] if turn.system else []
            messages.append({"role": "user", "content": parts})
            messages += [] if turn.output is None else [{"role": "assistant", "content": turn.output}]
        return messages

    def _picture(self, picture: Picture, opened: Image.Image, found: PictureBoxes) -> dict[str, Any]:
        url = data_url(picture.content(), opened)
        if self.boxes is None:
            return {"type": "image_url", "image_url": {"url": url}}
        chosen, _ = self.boxes.choose(found, opened.size)
        sent = {
            "boxes": chosen.boxes.tolist(),
            "labels": list(chosen.labels),
            "scores": chosen.scores.tolist(),
        }
        if self.boxes_in_url:
            return {"type": "image_url", "image_url": {"url": with_boxes(url, sent)}}
        return {"type": "image_url", "image_url": {"url": url}, "boxes": sent}


def data_url(content: bytes, opened: Image.Image) -> str:
    """Returns a picture as a data URL: its own bytes, or PNG where endpoints may not know its format.

    Args:
        content: of its file.
        opened: the same, decoded.
    """
    with Image.open(io.BytesIO(content)) as image:
        kind = image.format or ""
    if kind not in _READ_EVERYWHERE:
        stream = io.BytesIO()
        opened.save(stream, "PNG")
        kind, content = "PNG", stream.getvalue()
    return f"data:image/{kind.lower()};base64,{base64.b64encode(content).decode()}"
