"""The web page (Gradio): a picture with its boxes, chat, side by side, and which regions mattered."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from PIL import Image
from starlette.middleware import Middleware

from mg_llava.boxes.drawing import draw_boxes
from mg_llava.boxes.selection import PictureBoxes
from mg_llava.inference.chat import Detector
from mg_llava.inference.explain import explain_boxes
from mg_llava.inference.messages import IMAGE_PART, read_messages
from mg_llava.inference.prompts import Prompt, as_picture_boxes
from mg_llava.pictures.open import num_frames, open_picture
from mg_llava.serving.access.page_routes import PageRoutes
from mg_llava.serving.generation.engine import Engine
from mg_llava.serving.generation.sampling import Sampling
from mg_llava.serving.generation.text import TextAssembler
from mg_llava.serving.requests.body import check_boxes, check_size
from mg_llava.serving.requests.settings import Limits
from xtuner.errors import XTunerError, counted
from xtuner.json_values import JSONFault, parse_json

_CLEAN_SECONDS = 600
_HEIGHT = 420
"""Pixels, so that a tall picture is seen whole."""
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_CSS = "#drawn img {object-fit: contain} footer {visibility: hidden}"
Turns = list[list[str]]
"""Questions and answers of a conversation."""


class Page:
    """What the page's buttons do; nothing here knows of Gradio but that errors are shown by `gradio.Error`.

    Args:
        engine: answers.
        limits: of the server.
        detector: finds boxes; None = pictures have none but those that are typed.
    """

    def __init__(self, engine: Engine, limits: Limits, detector: Detector | None) -> None:
        self.engine = engine
        self.limits = limits
        self.detector = detector

    def show(self, path: str | None, typed: str, use_boxes: bool) -> tuple[Image.Image | None, str]:
        """Returns the picture with its boxes drawn, if they are used, and a line about it."""
        if not path:
            return None, "no picture"
        picture, found, outside = self._open(path, typed, use_boxes)
        notes = [f"{picture.width} x {picture.height} px", counted(0 if found is None else len(found.boxes), "boxes")]
        if outside:
            notes.append(f"left out: {counted(outside, 'boxes')} outside")
        if (frames := num_frames(path)) > 1:
            notes.append(f"an animation of {frames} frames: the first is shown")
        return (picture if found is None else draw_boxes(picture, found)), ", ".join(notes)

    def answer(self, path: str | None, typed: str, use_boxes: bool, turns: Turns, question: str) -> Iterator[Turns]:
        """Yields the conversation while the answer comes."""
        prompt, _ = self._prompt(path, typed, use_boxes, turns, question)
        for text in self._stream(prompt):
            yield [*turns, [question, text]]

    def compare(self, path: str | None, typed: str, question: str) -> Iterator[tuple[str, str]]:
        """Yields the answers with and without objects while they come."""
        streams = [self._stream(self._prompt(path, typed, boxes, [], question)[0]) for boxes in (True, False)]
        texts = ["", ""]
        for number, stream in enumerate(streams):
            for text in stream:
                texts[number] = text
                yield texts[0], texts[1]

    def explain(self, path: str | None, typed: str, question: str) -> tuple[str, Image.Image | None, list[list[Any]]]:
        """Returns the answer, the picture with its boxes coloured, and a table of label and weight."""
        prompt, found = self._prompt(path, typed, True, [], question)
        answer = ""
        for text in self._stream(prompt):
            answer = text
        if found is None or path is None or not answer:
            raise XTunerError(
                "there is nothing to explain: give a picture in which boxes are found, and ask a question."
            )
        weights = explain_boxes(self.engine.assistant, prompt, answer)
        picture, *_ = self._open(path, typed, use_boxes=False)
        rows = sorted(zip(found.labels, weights, strict=True), key=lambda row: -abs(row[1]))
        return answer, draw_boxes(picture, found, weights), [[label, round(weight, 3)] for label, weight in rows]

    def _open(self, path: str, typed: str, use_boxes: bool) -> tuple[Image.Image, PictureBoxes | None, int]:
        """The picture, its boxes that become object tokens, and how many lie outside."""
        assistant = self.engine.assistant
        picture = open_picture(path, assistant.image_processor.apply_exif_orientation, self.limits.max_pixels)
        if not use_boxes:
            return picture, None, 0
        if typed.strip():
            found = self._read_boxes(typed)
        else:
            found = None if self.detector is None else self.detector([picture])[0]
        if found is None:
            return picture, None, 0
        return picture, *assistant.choose_boxes(found, picture.size)

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
        return as_picture_boxes(boxes)

    def _prompt(
        self, path: str | None, typed: str, use_boxes: bool, turns: Turns, question: str
    ) -> tuple[Prompt, PictureBoxes | None]:
        if not question.strip():
            raise XTunerError("the question is empty: say something.")
        if (count := len(question) + sum(map(len, chain.from_iterable(turns)))) > self.limits.max_text:
            raise XTunerError(
                f"the chat has {count:,} characters, at most {self.limits.max_text:,} are taken: start anew."
            )
        messages: list[dict[str, Any]] = [
            {"role": role, "content": [{"type": "text", "text": words}]}
            for turn in [*turns, [question]]
            for role, words in zip(("user", "assistant"), turn, strict=False)
        ]
        if path:
            messages[0]["content"].insert(0, IMAGE_PART)
        asked = read_messages(messages, lambda _: self._open(path or "", typed, use_boxes)[:2])
        prompt = self.engine.assistant.prepare(asked.turns, asked.pictures, asked.found)
        return prompt, asked.found[0] if asked.found else None

    def _stream(self, prompt: Prompt) -> Iterator[str]:
        stops = self.engine.assistant.template.stop_words
        assembler = TextAssembler(self.engine.assistant.tokenizer, stops)
        ticket = self.engine.submit(prompt, Sampling(self.limits.max_new_tokens))
        try:
            for token in ticket:
                if assembler.add(token):
                    yield assembler.text
                if assembler.stopped:
                    break
            assembler.finish()
            yield assembler.text
        finally:
            # also where the visitor closed the page
            ticket.cancel()


def add_page(
    app: FastAPI, engine: Engine, limits: Limits, detector: Detector | None, examples: str | None = None
) -> FastAPI:
    """Returns the application with the page at ``/``.

    Args:
        app: with the endpoint, as `make_app` makes it.
        engine, limits, detector: see `Page`.
        examples: folder of pictures that visitors may try.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    uploads = tempfile.mkdtemp(prefix="mg_llava_page_")
    os.environ["GRADIO_TEMP_DIR"] = uploads
    app.state.at_end.callback(shutil.rmtree, uploads, ignore_errors=True)
    import gradio

    blocks = _build(Page(engine, limits, detector), examples)
    # before all of Gradio, behind the gate
    app.user_middleware.append(Middleware(PageRoutes, folders=[uploads, *([examples] if examples else [])]))
    blocks.queue(max_size=limits.max_queue, default_concurrency_limit=limits.max_batch)
    return gradio.mount_gradio_app(
        app,
        blocks,
        path="/",
        max_file_size=limits.max_upload,
        show_error=True,
        css=_CSS,
        allowed_paths=[examples] if examples else None,
    )


def _build(page: Page, examples: str | None) -> Any:
    import gradio as gr

    # files of visitors go after ten minutes
    with gr.Blocks(title="MG-LLaVA", delete_cache=(_CLEAN_SECONDS, _CLEAN_SECONDS)) as blocks:
        gr.Markdown("# MG-LLaVA\nA picture in low and in high resolution, and its objects one by one.")
        with gr.Row():
            with gr.Column(scale=2):
                picture, typed, use_boxes = _picture_column(page, examples)
            with gr.Column(scale=3):
                with gr.Tab("Chat"):
                    _chat_tab(page, picture, typed, use_boxes)
                with gr.Tab("With and without objects"):
                    _both_tab(page, picture, typed)
                with gr.Tab("Which regions mattered"):
                    _regions_tab(page, picture, typed)
    return blocks


def _picture_column(page: Page, examples: str | None) -> tuple[Any, Any, Any]:
    """The picture, boxes that are typed, and whether boxes are used."""
    import gradio as gr

    # no mode: the file is not decoded before its size was looked at
    picture = gr.Image(
        type="filepath", image_mode=None, sources=["upload", "clipboard"], label="Picture", elem_id="picture"
    )
    note = gr.Markdown("no picture", elem_id="note")
    drawn = gr.Image(label="What the model is given", interactive=False, height=_HEIGHT, elem_id="drawn")
    use_boxes = gr.Checkbox(True, label="Object tokens", elem_id="use_boxes")
    typed = gr.Textbox(
        "", label="Boxes of your own: [[x0, y0, x1, y1], ...] in pixels (optional)", elem_id="typed", lines=1
    )
    if examples:
        files = sorted(str(path) for path in Path(examples).iterdir() if path.suffix.lower() in _SUFFIXES)
        gr.Examples([[file] for file in files], inputs=[picture], elem_id="examples")
    given = [picture, typed, use_boxes]
    gr.on([picture.change, typed.submit, use_boxes.change], _shown(page.show), given, [drawn, note])
    return picture, typed, use_boxes


def _chat_tab(page: Page, picture: Any, typed: Any, use_boxes: Any) -> None:
    import gradio as gr

    turns = gr.State([])
    chat = gr.Chatbot(height=_HEIGHT, label="Chat", elem_id="chat")
    question = gr.Textbox(label="Question", placeholder="What is this?", elem_id="question")
    with gr.Row():
        send = gr.Button("Ask", variant="primary", elem_id="ask")
        stop = gr.Button("Stop", elem_id="stop")
        forget = gr.Button("Start anew", elem_id="reset")

    def say(*values: Any) -> Iterator[Any]:
        for now in page.answer(*values):
            yield now, _messages(now), ""

    given = [picture, typed, use_boxes, turns, question]
    running = gr.on([send.click, question.submit], _streamed(say), given, [turns, chat, question])
    stop.click(None, cancels=[running])
    gr.on([forget.click, picture.change], lambda: ([], []), None, [turns, chat])


def _both_tab(page: Page, picture: Any, typed: Any) -> None:
    import gradio as gr

    question = gr.Textbox(label="Question", elem_id="question_both")
    ask = gr.Button("Ask both", variant="primary", elem_id="ask_both")
    with gr.Row():
        with_objects = gr.Textbox(label="With objects", lines=6, elem_id="with_objects")
        without = gr.Textbox(label="Without objects", lines=6, elem_id="without_objects")
    gr.on([ask.click, question.submit], _streamed(page.compare), [picture, typed, question], [with_objects, without])


def _regions_tab(page: Page, picture: Any, typed: Any) -> None:
    import gradio as gr

    question = gr.Textbox(label="Question", elem_id="question_why")
    ask = gr.Button("Ask and explain", variant="primary", elem_id="ask_why")
    answer = gr.Textbox(label="Answer", elem_id="answer_why")
    regions = gr.Image(
        label="Red: for the answer, blue: against it", interactive=False, height=_HEIGHT, elem_id="regions"
    )
    weights = gr.Dataframe(headers=["box", "log-probability"], label="Change when left out", elem_id="weights")
    shown = _shown(page.explain)
    gr.on([ask.click, question.submit], shown, [picture, typed, question], [answer, regions, weights])


def _shown(function: Callable[..., Any]) -> Callable[..., Any]:
    """Turns our errors into a message on the page."""

    def call(*values: Any) -> Any:
        with _errors_on_the_page():
            return function(*values)

    return call


def _streamed(function: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """`_shown`, of a function that yields."""

    def call(*values: Any) -> Iterator[Any]:
        with _errors_on_the_page():
            yield from function(*values)

    return call


@contextmanager
def _errors_on_the_page() -> Iterator[None]:
    import gradio

    try:
        yield
    except (XTunerError, OSError) as error:
        raise gradio.Error(str(error), duration=None) from error


def _messages(turns: Turns) -> list[dict[str, str]]:
    return [
        {"role": role, "content": words}
        for turn in turns
        for role, words in zip(("user", "assistant"), turn, strict=True)
    ]
