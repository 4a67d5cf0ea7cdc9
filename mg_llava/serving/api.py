"""The OpenAI-compatible endpoint: chat completions, models, health."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from starlette.requests import ClientDisconnect

from mg_llava.serving.answers import GONE, Answer
from mg_llava.serving.generation.engine import Engine
from mg_llava.serving.generation.tickets import Place, late
from mg_llava.serving.requests.chat import ChatRequest, RequestReader, UnknownModel
from mg_llava.serving.requests.detecting import SharedDetector
from mg_llava.serving.requests.errors import error_response, refusal
from mg_llava.serving.requests.settings import Limits
from xtuner.errors import XTunerError
from xtuner.log import get_logger

_READERS = 4
"""Requests whose pictures are read at the same time."""
_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"]


def make_router(engine: Engine, limits: Limits, model_name: str, detector: SharedDetector | None = None) -> APIRouter:
    """Returns the routes ``/v1/chat/completions``, ``/v1/models`` and ``/health``.

    Args:
        engine: answers.
        limits: of the server.
        model_name: how the model is called.
        detector: finds boxes in pictures that come without; None = they have none.
    """
    router = APIRouter()
    created = int(time.time())
    endpoint = _Endpoint(engine, limits, RequestReader(engine, model_name, limits, detector))

    @router.get("/health")
    def health() -> Response:
        healthy = engine.healthy
        return JSONResponse({"status": "ok" if healthy else "stopped", **engine.load()}, 200 if healthy else 503)

    @router.get("/v1/models")
    def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(model_name, created)]}

    @router.get("/v1/models/{name:path}")
    def model(name: str) -> Any:
        try:
            endpoint.reader.check_model(name)
        except UnknownModel as error:
            return refusal(error)
        return _model(model_name, created)

    @router.post("/v1/chat/completions")
    async def complete(request: Request) -> Response:
        return await endpoint.complete(request)

    @router.api_route("/v1/{path:path}", methods=_METHODS, include_in_schema=False)
    def absent(request: Request, path: str) -> Response:
        known = {"chat/completions": "POST", "models": "GET"}
        if path in known:
            message = f"/v1/{path} takes {known[path]}, not {request.method}."
            return error_response(message, 405, Allow=known[path])
        return error_response(f"this server has no /v1/{path[:60]}: it has /v1/chat/completions and /v1/models.", 404)

    return router


class _Endpoint:
    """Takes requests, reads them in threads of its own, and hands them to the engine."""

    def __init__(self, engine: Engine, limits: Limits, reader: RequestReader) -> None:
        self.engine = engine
        self.limits = limits
        self.reader = reader
        self.readers = ThreadPoolExecutor(_READERS, thread_name_prefix="mg-llava-read")
        # of their own: those who wait for tokens must not take the threads that read pictures
        self.answering = ThreadPoolExecutor(limits.max_batch + limits.max_queue, thread_name_prefix="mg-llava-answer")

    async def complete(self, request: Request) -> Response:
        """Answers one request; one whose client goes away is given up wherever it is."""
        try:
            content = await asyncio.wait_for(request.body(), self.limits.max_receive)
        except ClientDisconnect:
            get_logger().info("a client went away before its request was complete")
            return Response(status_code=GONE)
        except asyncio.TimeoutError:
            message = f"the request did not come within {self.limits.max_receive:g} s: send it anew, or a smaller one."
            return error_response(message, 408, Connection="close")
        gone = asyncio.create_task(_departure(request))
        try:
            # a place before pictures are decoded and boxes found: a flood must cost little
            with self.engine.admit() as place:
                asked = await self._read(content, place, gone)
                if asked is None:
                    return Response(status_code=GONE)
                ticket = self.engine.submit(asked.prompt, asked.sampling, place)
        except XTunerError as error:
            gone.cancel()
            return refusal(error)
        answer = Answer(self.engine, ticket, asked, self.reader.model_name, gone, self.answering)
        return await (answer.streamed() if asked.stream else answer.whole())

    async def _read(self, content: bytes, place: Place, gone: asyncio.Task[None]) -> ChatRequest | None:
        """Returns the request, None where its client went away meanwhile; the thread ends at its next check."""
        reading = asyncio.get_running_loop().run_in_executor(self.readers, self.reader.read, content, place)
        left = place.deadline - time.monotonic()
        waited: set[asyncio.Future[Any]] = {reading, gone}
        await asyncio.wait(waited, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if reading.done() and not gone.done():
            return reading.result()
        place.leave()
        reading.add_done_callback(_forget)
        reading.cancel()
        if not gone.done():
            raise late()
        return None


async def _departure(request: Request) -> None:
    """Ends when the client goes away, or when it has its answer."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _forget(reading: asyncio.Future[ChatRequest]) -> None:
    """Takes the outcome of a reading that nobody waits for, so that it is not reported as lost."""
    if not reading.cancelled():
        reading.exception()


def _model(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "mg-llava"}
