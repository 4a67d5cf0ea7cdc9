"""The page's components (Gradio) around the chat: the picture, its boxes, settings, and the tabs."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.middleware import Middleware

from mg_llava.inference.chat import Detector
from mg_llava.serving.access.page_routes import PageRoutes
from mg_llava.serving.generation.engine import Engine
from mg_llava.serving.page.actions import Page
from mg_llava.serving.page.canvas import HEIGHT, make_canvas, make_strip
from mg_llava.serving.page.chat_tab import add_chat_tab
from mg_llava.serving.page.fields import Fields, shown, streamed, with_event
from mg_llava.serving.requests.settings import Limits
from xtuner.constants import HOTTEST

CLEAN_SECONDS = 600
"""After which files of visitors go."""
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_VIDEO_SUFFIXES = (".mp4", ".mov", ".webm", ".mkv", ".avi", ".gif", ".webp")
"""That a browser's dialogue offers; what a file is, its content tells."""
_CSS = """
footer {visibility: hidden}
#corners {flex-wrap: nowrap} #corners > * {min-width: 0 !important}
#note, #cut {min-height: 1.5rem}
"""
_SPEAK = """() => {
  // screen readers say what changes there
  for (const id of ['note', 'cut']) document.getElementById(id).setAttribute('role', 'status');
}"""


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

    blocks = _build(Page(engine, limits, detector, uploads), app.state.model_name, examples)
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


def _build(page: Page, model_name: str, examples: str | None) -> Any:
    import gradio as gr

    name = model_name.replace("`", "'")
    with gr.Blocks(title="MG-LLaVA", delete_cache=(CLEAN_SECONDS, CLEAN_SECONDS)) as blocks:
        gr.Markdown("# MG-LLaVA\nA picture or a video in low and in high resolution, and its objects one by one.")
        gr.Markdown(f"Model: `{name}`", elem_id="model")
        with gr.Row():
            with gr.Column(scale=2):
                fields = _fields(page, examples)
            with gr.Column(scale=3):
                with gr.Tab("Chat"):
                    add_chat_tab(page, fields)
                with gr.Tab("With and without objects"):
                    _both_tab(page, fields)
                with gr.Tab("Which regions mattered"):
                    _regions_tab(page, fields)
        blocks.load(None, None, None, js=_SPEAK)
    return blocks


def _fields(page: Page, examples: str | None) -> Fields:
    """The picture, its boxes, and how answers are made."""
    import gradio as gr

    # no mode: the file is not decoded before its size was looked at
    picture = gr.Image(
        type="filepath",
        image_mode=None,
        sources=["upload", "clipboard"],
        label="Picture",
        elem_id="picture",
        height=200,
    )
    if examples:
        files = sorted(str(path) for path in Path(examples).iterdir() if path.suffix.lower() in _SUFFIXES)
        gr.Examples([[file] for file in files], inputs=[picture], elem_id="examples")
    video = gr.File(
        file_types=list(_VIDEO_SUFFIXES),
        label=f"Video: {page.limits.max_frames} frames of it are shown",
        elem_id="video",
        height=120,
        visible=not page.engine.no_videos,
    )
    note = gr.Markdown("no picture", elem_id="note")
    drawn = make_canvas()
    strip = make_strip()
    use_boxes = gr.Checkbox(True, label="Object tokens", elem_id="use_boxes")
    gr.Markdown("Draw a box on the picture, or give its corners in pixels: the model is then given your boxes alone.")
    with gr.Row(elem_id="corners"):
        names = ("Left", "Top", "Right", "Bottom")
        corners = [gr.Number(None, label=name, elem_id=name.lower(), min_width=60) for name in names]
    with gr.Row():
        add = gr.Button("Add box", elem_id="add_box", size="sm", min_width=90)
        forget = gr.Button("Forget my boxes", elem_id="forget_boxes", size="sm", min_width=90)
    typed = gr.Textbox("", label="Your boxes: [[x0, y0, x1, y1], ...] in pixels", elem_id="typed", lines=1)
    with gr.Accordion("Settings", open=False, elem_id="settings"):
        temperature = gr.Slider(
            0, HOTTEST, 0, step=0.1, label="Temperature (0: the likeliest words each time)", elem_id="temperature"
        )
        most = page.limits.max_new_tokens
        max_tokens = gr.Slider(1, most, most, step=1, label="Most tokens of an answer", elem_id="max_tokens")
    fields = Fields(picture, typed, use_boxes, temperature, max_tokens, video)

    def drawn_by_hand(event: Any, *values: Any) -> tuple[Any, ...]:
        box = list(getattr(event, "box", ()))
        typed = shown(page.add_box)(*values, box)
        return (typed, *(round(corner, 1) for corner in box))

    drawn.select(with_event(drawn_by_hand, gr.EventData), fields.all, [typed, *corners])
    add.click(shown(lambda given, *box: page.add_box(given, box)), [*fields.all, *corners], typed)
    forget.click(lambda: "", None, typed)
    # the one of both that came last takes the other away
    video.upload(lambda: (None, ""), None, [picture, typed], show_progress="hidden")
    picture.change(lambda path: None if path else gr.skip(), picture, video, show_progress="hidden")
    changes = [picture.change, typed.change, use_boxes.change, video.change]
    gr.on(changes, shown(page.show), fields.all, [drawn, note, strip], api_name="show")
    return fields


def _both_tab(page: Page, fields: Fields) -> None:
    import gradio as gr

    question = gr.Textbox(label="Question", elem_id="question_both")
    ask = gr.Button("Ask both", variant="primary", elem_id="ask_both")
    with gr.Row():
        with_objects = gr.Textbox(label="With objects", lines=6, elem_id="with_objects")
        without = gr.Textbox(label="Without objects", lines=6, elem_id="without_objects")
    gr.on([ask.click, question.submit], streamed(page.compare), [*fields.all, question], [with_objects, without])


def _regions_tab(page: Page, fields: Fields) -> None:
    import gradio as gr

    question = gr.Textbox(label="Question", elem_id="question_why")
    ask = gr.Button("Ask and explain", variant="primary", elem_id="ask_why")
    answer = gr.Textbox(label="Answer", elem_id="answer_why")
    regions = gr.Image(
        label="Red: for the answer, blue: against it", interactive=False, height=HEIGHT, elem_id="regions"
    )
    weights = gr.Dataframe(headers=["box", "log-probability"], label="Change when left out", elem_id="weights")
    gr.on([ask.click, question.submit], shown(page.explain), [*fields.all, question], [answer, regions, weights])
