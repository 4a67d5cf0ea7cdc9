"""A tiny assistant behind a real server on a free port."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mg_llava.boxes.selection import PictureBoxes
from mg_llava.hf import save_pretrained
from mg_llava.inference.assistant import Assistant
from mg_llava.inference.messages import Conversation
from mg_llava.inference.prompts import Prompt, PromptMaker
from mg_llava.serving.requests.settings import Limits
from tests.tiny_assistant import randomize, tiny_assistant


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Assistant, dict[str, Any]]:
    """An assistant and the node of its model."""
    assistant, node = tiny_assistant(tmp_path_factory.mktemp("serving"))
    return randomize(assistant), node


@pytest.fixture(scope="session")
def assistant(made: tuple[Assistant, dict[str, Any]]) -> Assistant:
    return made[0]


@pytest.fixture(scope="session")
def exported(made: tuple[Assistant, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same assistant."""
    return save_pretrained(*made, tmp_path_factory.mktemp("exported") / "tiny")


@contextmanager
def proxied(assistant: Assistant, folder: Path, limits: Limits) -> Iterator[Any]:
    """An engine that asks a vLLM of which there is only a stub; `assistant` works out the answers there."""
    from mg_llava.serving.proxy.checks import find_model
    from mg_llava.serving.proxy.engine import ProxyEngine
    from mg_llava.serving.proxy.prompts import PromptSender
    from mg_llava.serving.proxy.upstream import Upstream
    from tests.stub_vllm import StubVLLM

    stub = StubVLLM(assistant, folder)
    try:
        with serve(stub.app()) as url:
            upstream = Upstream(url)
            sizes = {"max_batch": limits.max_batch, "max_queue": limits.max_queue, "max_wait": limits.max_wait}
            engine = ProxyEngine(PromptSender(folder), upstream, *find_model(upstream, folder), **sizes)
            engine.stub = stub  # type: ignore[attr-defined]
            yield engine
            engine.close()
    finally:
        stub.close()


class Preparing:
    """What an engine makes prompts by, without its thread."""

    no_videos = ""

    def __init__(self, assistant: Assistant) -> None:
        self.assistant = assistant

    @property
    def maker(self) -> PromptMaker:
        return self.assistant.maker

    def prepare(self, asked: Conversation, files: Sequence[bytes], videos: Sequence[Any] = ()) -> Prompt:
        return self.assistant.prepare(asked.turns, asked.pictures, asked.found, asked.answer_start)


def endless(assistant: Assistant) -> Callable[[], list[int]]:
    """In place of `stop_ids`: answers go on until they are cut."""
    return lambda: []


def data_url(picture: Image.Image, kind: str = "PNG") -> str:
    stream = io.BytesIO()
    picture.save(stream, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"


def noise(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (30, 40, 3), dtype=np.uint8))


def found_cup(pictures: list[Image.Image], keys: Any = None) -> list[PictureBoxes]:
    """A detector that finds a cup in every picture."""
    return [PictureBoxes(np.array([[2, 3, 20, 25]], np.float32), ("cup",), np.ones(1, np.float32)) for _ in pictures]


@contextmanager
def serve(app: Any) -> Iterator[str]:
    """Runs an application on a free port of this machine; yields its address."""
    import uvicorn

    from mg_llava.serving.command import listen, server_settings

    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(server_settings(app, "error"))
    server.config.timeout_graceful_shutdown = 1
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=20)
