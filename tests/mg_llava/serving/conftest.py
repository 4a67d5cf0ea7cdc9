"""A tiny assistant behind a real server on a free port."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mg_llava.boxes.selection import PictureBoxes
from mg_llava.inference.assistant import Assistant
from tests.tiny_assistant import randomize, tiny_assistant


@pytest.fixture(scope="session")
def assistant(tmp_path_factory: pytest.TempPathFactory) -> Assistant:
    return randomize(tiny_assistant(tmp_path_factory.mktemp("serving"))[0])


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
