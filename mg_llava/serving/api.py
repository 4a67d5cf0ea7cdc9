"""The OpenAI-compatible endpoint: chat completions, models, health."""

from __future__ import annotations

import asyncio
import json
import queue
import time
import uuid
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool

from mg_llava.inference.chat import Detector
from mg_llava.serving.generation.engine import Engine
from mg_llava.serving.generation.text import TextAssembler
from mg_llava.serving.generation.tickets import Overloaded, Ticket
from mg_llava.serving.requests import ChatRequest, read_request
from mg_llava.serving.settings import Limits
from xtuner.errors import XTunerError

_LOOK_SECONDS = 0.2
"""How often a waiting request looks whether its client is still there."""
_RETRY_SECONDS = "1"
_READERS = 4
"""Requests whose pictures are read at the same time."""
_CLIENT_GONE = 499
"""As servers log it; nobody reads it."""


def make_router(engine: Engine, limits: Limits, model_name: str, detector: Detector | None = None) -> APIRouter:
    """Returns the routes ``/v1/chat/completions``, ``/v1/models`` and ``/health``.

    Args:
        engine: answers.
        limits: of the server.
        model_name: how the model is called.
        detector: finds boxes in pictures that come without; None = they have none.
    """
    router = APIRouter()
    created = int(time.time())
    reading = asyncio.Semaphore(_READERS)
    # of their own: those who wait for tokens must not take the threads that read pictures
    threads = ThreadPoolExecutor(limits.max_batch + limits.max_queue, thread_name_prefix="mg-llava-answer")

    @router.get("/health")
    def health() -> Response:
        status = 200 if engine.healthy else 503
        return JSONResponse({"status": "ok" if engine.healthy else "stopped", **engine.load()}, status)

    @router.get("/v1/models")
    def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(model_name, created)]}

    @router.get("/v1/models/{name:path}")
    def model(name: str) -> Any:
        if name != model_name:
            return _error(f"there is no model '{name}': this server has '{model_name}'.", 404, "model_not_found")
        return _model(model_name, created)

    @router.post("/v1/chat/completions")
    async def complete(request: Request) -> Response:
        try:
            body = json.loads(await request.body())
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            return _error(f"the body is not JSON: {error}", 400)
        try:
            # a place before pictures are decoded and boxes found: a flood must cost little
            with engine.admit() as place:
                async with reading:
                    if await request.is_disconnected():
                        return Response(status_code=_CLIENT_GONE)
                    place.check()
                    asked = await run_in_threadpool(read_request, body, engine.assistant, limits, detector)
                ticket = engine.submit(asked.prompt, asked.sampling, place)
        except Overloaded as error:
            return _overloaded(error)
        except XTunerError as error:
            return _error(str(error), 400)
        answer = _Answer(engine, ticket, asked, model_name, request, threads)
        return await (answer.streamed() if asked.stream else answer.whole())

    return router


class _Answer:
    """One request's answer on its way to the client; a client that goes away frees its row."""

    def __init__(
        self,
        engine: Engine,
        ticket: Ticket,
        asked: ChatRequest,
        model_name: str,
        request: Request,
        threads: ThreadPoolExecutor,
    ) -> None:
        self.threads = threads
        self.ticket = ticket
        self.asked = asked
        self.request = request
        self.assembler = TextAssembler(engine.assistant.tokenizer, asked.sampling.stop)
        model = engine.assistant.model
        self.prompt_tokens = asked.prompt.num_tokens(model.low_res_encoder.num_tokens, model.object_encoder is not None)
        self.head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model_name}

    async def pieces(self) -> AsyncIterator[str]:
        """Yields certain text; ends the request where its client is gone or a stop text came.

        Raises:
            XTunerError: the engine's.
        """
        loop = asyncio.get_running_loop()
        try:
            while True:
                try:
                    event = await loop.run_in_executor(self.threads, self.ticket.next_event, _LOOK_SECONDS)
                except queue.Empty:
                    if await self.request.is_disconnected():
                        return
                    continue
                if event is None:
                    break
                if piece := self.assembler.add(event):
                    yield piece
                if self.assembler.stopped:
                    return
            if rest := self.assembler.finish():
                yield rest
        finally:
            self.ticket.cancel()

    async def whole(self) -> Response:
        """The answer in one piece."""
        watch = asyncio.create_task(self._watch())
        try:
            async for _ in self.pieces():
                pass
        except Overloaded as error:
            return _overloaded(error)
        except XTunerError as error:
            return _error(str(error), 500)
        finally:
            watch.cancel()
        message = {"role": "assistant", "content": self.assembler.text.strip()}
        choice = {"index": 0, "message": message, "finish_reason": self._reason(), "logprobs": None}
        return JSONResponse({**self.head, "object": "chat.completion", "choices": [choice], "usage": self._usage()})

    async def _watch(self) -> None:
        while not await self.request.is_disconnected():
            await asyncio.sleep(_LOOK_SECONDS)
        self.ticket.cancel()

    async def streamed(self) -> Response:
        """The answer piece by piece; refusals come before the first byte, with their own status."""
        pieces = self.pieces()
        try:
            first = await anext(pieces, "")
        except Overloaded as error:
            return _overloaded(error)
        except XTunerError as error:
            return _error(str(error), 500)
        return StreamingResponse(self._events(first, pieces), media_type="text/event-stream")

    async def _events(self, first: str, pieces: AsyncIterator[str]) -> AsyncIterator[str]:
        try:
            yield self._chunk({"role": "assistant", "content": first})
            async for piece in pieces:
                yield self._chunk({"content": piece})
            yield self._chunk({}, self._reason())
            if self.asked.with_usage:
                event = {**self.head, "object": "chat.completion.chunk", "choices": [], "usage": self._usage()}
                yield f"data: {json.dumps(event)}\n\n"
        except XTunerError as error:
            yield f"data: {json.dumps(_error_body(str(error), 'server_error'))}\n\n"
        finally:
            self.ticket.cancel()
        yield "data: [DONE]\n\n"

    def _chunk(self, delta: dict[str, str], reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        event = {**self.head, "object": "chat.completion.chunk", "choices": [choice]}
        return f"data: {json.dumps(event, ensure_ascii=False)}\n\n"

    def _reason(self) -> str:
        return "length" if self.ticket.reason == "length" and not self.assembler.stopped else "stop"

    def _usage(self) -> dict[str, int]:
        made = len(self.ticket.ids)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": made,
            "total_tokens": self.prompt_tokens + made,
        }


def _model(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "mg-llava"}


def _error_body(message: str, kind: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


def _error(message: str, status: int, kind: str | None = None) -> JSONResponse:
    kind = kind or ("invalid_request_error" if status < 500 else "server_error")
    return JSONResponse(_error_body(message, kind), status)


def _overloaded(error: Overloaded) -> JSONResponse:
    status = 503 if error.waited else 429
    body = _error_body(str(error), "server_error" if error.waited else "rate_limit_error")
    return JSONResponse(body, status, headers={"Retry-After": _RETRY_SECONDS})
