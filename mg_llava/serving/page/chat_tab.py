"""The tab in which the model is talked to: ask, stop, again, edit, copy, save and load."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from mg_llava.serving.page.actions import Given, Loaded, Page, Turns, digest
from mg_llava.serving.page.canvas import HEIGHT
from mg_llava.serving.page.fields import Fields, errors_on_the_page, shown, streamed, with_event

_DOWNLOAD = """(text) => {
  if (!text) return;
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([text], {type: 'application/json'}));
  link.download = 'chat.json';
  link.click();
  URL.revokeObjectURL(link.href);
}"""
_STOPPED = "You stopped the answer."


def add_chat_tab(page: Page, fields: Fields) -> None:
    """Puts the chat into the block that is open.

    Args:
        page: what the buttons do.
        fields: of the picture, boxes and settings.
    """
    import gradio as gr

    turns = gr.State([])
    # of the picture that the turns are about
    about = gr.State("")
    text = gr.Textbox(visible="hidden", elem_id="saved_text")
    chat = gr.Chatbot(height=HEIGHT, label="Chat", elem_id="chat", editable="user", buttons=["copy", "copy_all"])
    cut = gr.Markdown("", elem_id="cut")
    question = gr.Textbox(label="Question", placeholder="What is this?", elem_id="question")
    with gr.Row():
        send = gr.Button("Ask", variant="primary", elem_id="ask", min_width=120)
        stop = gr.Button("Stop", elem_id="stop", min_width=120)
        again = gr.Button("Regenerate", elem_id="again", min_width=120)
        forget = gr.Button("Start anew", elem_id="reset", min_width=120)
    with gr.Row():
        save = gr.Button("Save chat", elem_id="save", size="sm", min_width=90)
        load = gr.UploadButton("Load chat", file_types=[".json"], elem_id="load", size="sm", min_width=90)

    say, say_again, edit = _asking(page)

    def take(path: str) -> tuple[Any, ...]:
        with errors_on_the_page():
            found: Loaded = page.load(path)
            said = (found.turns, messages(found.turns), "", digest(found.path))
            return *said, found.path, found.typed, found.use_boxes, None

    def follow(path: str | None, video: str | None, now: Turns, of: str) -> tuple[Any, ...]:
        """Forgets the chat where another picture or video came; a chat that was loaded brings its own."""
        came = digest(video or path)
        return (now, messages(now), gr.skip(), of) if came == of else ([], [], "", came)

    shows = [turns, chat, cut]
    given = [*fields.all, turns]
    running = [
        gr.on([send.click, question.submit], streamed(say), [*given, question], [*shows, question]),
        again.click(streamed(say_again), given, shows),
        chat.retry(streamed(say_again), given, shows),
        chat.edit(with_event(edit, gr.EditData), given, shows),
    ]
    stop.click(lambda: _STOPPED, None, cut, cancels=running)
    forget.click(lambda: ([], [], ""), None, shows)
    chat.clear(lambda: ([], ""), None, [turns, cut])
    seen = [fields.picture, fields.video]
    gr.on([field.change for field in seen], follow, [*seen, turns, about], [*shows, about])
    save.click(shown(page.save), given, text).success(None, text, None, js=_DOWNLOAD)
    load.upload(take, load, [*shows, about, fields.picture, fields.typed, fields.use_boxes, fields.video])


def _asking(page: Page) -> tuple[Callable[..., Iterator[Any]], ...]:
    """What a new question, `Regenerate` and an edited question do: each yields turns, messages and note."""

    def say(given: Given, now: Turns, words: str) -> Iterator[Any]:
        for after, note in page.answer(given, now, words):
            yield after, messages(after), note, ""

    def say_again(given: Given, now: Turns) -> Iterator[Any]:
        for after, note in page.answer_again(given, now, -1):
            yield after, messages(after), note

    def edit(event: Any, *values: Any) -> Iterator[Any]:
        number, words = edited(event.index, event.value)

        def ask(given: Given, now: Turns) -> Iterator[Any]:
            for after, note in page.answer_again(given, now, number, words):
                yield after, messages(after), note

        yield from streamed(ask)(*values)

    return say, say_again, edit


def edited(index: Any, value: Any) -> tuple[int, str]:
    """Returns the number of the question and its new words, of what Gradio tells of an edited message."""
    place = index[0] if isinstance(index, (list, tuple)) else index
    words = value if isinstance(value, str) else "".join(_texts(value))
    return int(place) // 2, words


def _texts(value: Any) -> Iterator[str]:
    for part in value if isinstance(value, list) else [value]:
        if isinstance(part, dict):
            yield str(part.get("text", part.get("content", "")))
        elif isinstance(part, str):
            yield part


def messages(turns: Turns) -> list[dict[str, str]]:
    """Returns the turns as Gradio's chat shows them."""
    return [
        {"role": role, "content": words}
        for turn in turns
        for role, words in zip(("user", "assistant"), turn, strict=True)
    ]
