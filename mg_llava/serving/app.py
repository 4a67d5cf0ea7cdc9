"""One FastAPI application: the endpoint, what stands before it, and the page where Gradio is installed."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from mg_llava.inference.assistant import Assistant
from mg_llava.inference.chat import Detector
from mg_llava.serving.access.gate import Gate
from mg_llava.serving.access.settings import Access
from mg_llava.serving.access.unforeseen import Unforeseen
from mg_llava.serving.access.uploads import UploadLimit
from mg_llava.serving.api import make_router
from mg_llava.serving.generation.batch_engine import BatchEngine
from mg_llava.serving.generation.engine import Engine
from mg_llava.serving.requests.detecting import SharedDetector
from mg_llava.serving.requests.errors import error_response
from mg_llava.serving.requests.settings import Limits


def make_app(
    answering: Assistant | Engine,
    limits: Limits | None = None,
    model_name: str = "mg-llava",
    detector: Detector | None = None,
    add_page: Callable[[FastAPI, Engine, Limits, Detector | None], FastAPI] | None = None,
    access: Access | None = None,
) -> FastAPI:
    """Returns the application; its state holds the ``engine``, which ends with it, ``at_end``, a stack of what is
    to be done then, and the ``model_name``.

    Args:
        answering: an engine, or an assistant, which gets this project's own.
        limits: what is taken.
        model_name: how the endpoint calls the model.
        detector: for pictures that come without boxes.
        add_page: puts the page into the application; None = the endpoint only.
        access: who may ask; None = whoever reaches it by this machine's own names.
    """
    limits = limits or Limits()
    if isinstance(answering, Engine):
        engine = answering
    else:
        engine = BatchEngine(answering, limits.max_batch, limits.max_queue, limits.max_wait)
    shared = None if detector is None else SharedDetector(detector)
    at_end = contextlib.ExitStack()

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # not atexit: a server that is told to end by SIGTERM does not come to it
        with at_end:
            yield
            engine.close()

    app = FastAPI(title="MG-LLaVA", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.engine = engine
    app.state.model_name = model_name
    app.state.at_end = at_end
    app.include_router(make_router(engine, limits, model_name, shared))
    app.add_exception_handler(HTTPException, _http_error)
    # the last one stands before the others
    app.add_middleware(UploadLimit, max_bytes=limits.max_upload)
    app.add_middleware(Unforeseen)
    app.add_middleware(Gate, access=access or Access())
    return app if add_page is None else add_page(app, engine, limits, shared)


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return error_response(str(error.detail), error.status_code)
