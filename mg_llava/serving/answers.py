"""Answers on their way to the client, whole or piece by piece."""

from __future__ import annotations

import asyncio
import json
import queue
import time
import uuid
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

from fastapi.responses import JSONResponse, Response, StreamingResponse

from mg_llava.serving.generation.engine import Engine
from mg_llava.serving.generation.text import TextAssembler
from mg_llava.serving.generation.tickets import Overloaded, Refused, Ticket
from mg_llava.serving.requests.chat import ChatRequest
from mg_llava.serving.requests.errors import error_body, error_response, refusal
from xtuner.errors import XTunerError

IGNORED_HEADER = "X-MG-LLaVA-Ignored-Fields"
"""Names the fields of a request that this server does not know."""
_LOOK_SECONDS = 0.2
_MOST_NAMED = 20
_NAME_LENGTH = 60
GONE = 499
"""The status of an answer that nobody reads, as servers log it."""


class Answer:
    """One request's answer; a client that goes away frees its row.

    Args:
        engine: that works on it.
        ticket: the request.
        asked: what it asked for.
        model_name: how the model is called.
        gone: ends when the client goes away.
        threads: in which tokens are waited for.
    """

    def __init__(
        self,
        engine: Engine,
        ticket: Ticket,
        asked: ChatRequest,
        model_name: str,
        gone: asyncio.Task[None],
        threads: ThreadPoolExecutor,
    ) -> None:
        self.threads = threads
        self.ticket = ticket
        self.asked = asked
        self.gone = gone
        # wherever the answer is then: the row is freed, also of a stream whose first piece was never read
        gone.add_done_callback(lambda _: ticket.cancel())
        self.assembler = TextAssembler(engine.maker.tokenizer, asked.sampling.stop)
        self.prompt_tokens = engine.num_tokens(asked.prompt)
        self.head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model_name}
        # names come from the client: nothing of them may be read as a header
        names = [quote(name[:_NAME_LENGTH], safe="") for name in asked.ignored[:_MOST_NAMED]]
        self.headers = {IGNORED_HEADER: ", ".join(names)} if names else {}

    async def pieces(self) -> AsyncIterator[str]:
        """Yields certain text; ends the request where its client is gone or a stop text came.

        Raises:
            XTunerError: the engine's.
        """
        loop = asyncio.get_running_loop()
        try:
            while not self.gone.done():
                try:
                    event = await loop.run_in_executor(self.threads, self.ticket.next_event, _LOOK_SECONDS)
                except queue.Empty:
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
        try:
            async for _ in self.pieces():
                pass
        except XTunerError as error:
            return _failure(error)
        if self.gone.done():
            return Response(status_code=GONE)
        self.gone.cancel()
        message = {"role": "assistant", "content": self.assembler.text.strip()}
        choice = {"index": 0, "message": message, "finish_reason": self._reason(), "logprobs": None}
        body = {**self.head, "object": "chat.completion", "choices": [choice], "usage": self._usage()}
        return JSONResponse(body, headers=self.headers)

    async def streamed(self) -> Response:
        """The answer piece by piece; refusals come before the first byte, with their own status."""
        pieces = self.pieces()
        try:
            first = await anext(pieces, "")
        except XTunerError as error:
            return _failure(error)
        return StreamingResponse(self._events(first, pieces), media_type="text/event-stream", headers=self.headers)

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
            yield f"data: {json.dumps(error_body(str(error), 'server_error'))}\n\n"
        finally:
            self.gone.cancel()
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


def _failure(error: XTunerError) -> Response:
    return refusal(error) if isinstance(error, (Overloaded, Refused)) else error_response(str(error), 500)
