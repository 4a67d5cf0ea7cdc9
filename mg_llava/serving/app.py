"""One FastAPI application: the endpoint, the limits on uploads, and the page where Gradio is installed."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Callable

from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mg_llava.inference.assistant import Assistant
from mg_llava.inference.chat import Detector
from mg_llava.serving.api import make_router
from mg_llava.serving.detecting import SharedDetector
from mg_llava.serving.generation.engine import Engine
from mg_llava.serving.settings import Limits


def make_app(
    assistant: Assistant,
    limits: Limits | None = None,
    model_name: str = "mg-llava",
    detector: Detector | None = None,
    add_page: Callable[[FastAPI, Engine, Limits, Detector | None], FastAPI] | None = None,
) -> FastAPI:
    """Returns the application; its state holds the ``engine``, which ends with it, and ``at_end``, a stack of what is
    to be done then.

    Args:
        assistant: answers.
        limits: what is taken.
        model_name: how the endpoint calls the model.
        detector: for pictures that come without boxes.
        add_page: puts the page into the application; None = the endpoint only.
    """
    limits = limits or Limits()
    detector = None if detector is None else SharedDetector(detector)
    engine = Engine(assistant, limits.max_batch, limits.max_queue, limits.max_wait)
    at_end = contextlib.ExitStack()

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # not atexit: a server that is told to end by SIGTERM does not come to it
        with at_end:
            yield
            engine.close()

    app = FastAPI(title="MG-LLaVA", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.engine = engine
    app.state.at_end = at_end
    app.include_router(make_router(engine, limits, model_name, detector))
    app.add_middleware(UploadLimit, max_bytes=limits.max_upload)
    return app if add_page is None else add_page(app, engine, limits, detector)


_DROPPED = 4
"""A body that is refused is read to its end, but for no more than so many times the limit."""


class UploadLimit:
    """Refuses bodies of more than `max_bytes`, also those that do not say how long they are.

    Args:
        app: what stands behind.
        max_bytes: of a body.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or answers 413."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        lengths = [value for name, value in scope["headers"] if name == b"content-length"]
        if lengths and lengths[0].isdigit() and int(lengths[0]) > self.max_bytes:
            await self._refuse(receive, send)
            return
        read = 0
        refused = False

        async def counted() -> Message:
            nonlocal read, refused
            message = await receive()
            read += len(message.get("body", b""))
            if read > self.max_bytes and not refused:
                refused = True
                raise _TooLargeError
            return message

        with contextlib.suppress(_TooLargeError):
            await self.app(scope, counted, send)
        if refused:
            await self._refuse(receive, send)

    async def _refuse(self, receive: Receive, send: Send) -> None:
        # a client that is still sending when the connection closes sees a reset instead of the answer
        left = _DROPPED * self.max_bytes
        while left > 0:
            message = await receive()
            left -= len(message.get("body", b""))
            if not message.get("more_body", False):
                break
        text = f"the request is larger than {self.max_bytes / 1e6:.0f} MB: send a smaller picture."
        error = {"message": text, "type": "invalid_request_error", "param": None, "code": None}
        body = json.dumps({"error": error}).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        await send({"type": "http.response.start", "status": 413, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class _TooLargeError(Exception):
    """A body passed the limit while it was read."""
