"""A server that speaks vLLM's side of OpenAI's protocol, with a tiny model of this package behind it, for tests of what
asks vLLM where vLLM is not installed.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import queue
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from mg_llava.hf import MGLLaVAProcessor
from mg_llava.inference.assistant import Assistant
from mg_llava.inference.messages import Conversation, read_messages
from mg_llava.pictures.open import open_picture
from mg_llava.serving.generation.batch_engine import BatchEngine
from mg_llava.serving.generation.sampling import Sampling
from mg_llava.serving.generation.text import TextAssembler
from mg_llava.serving.generation.tickets import FINISHED, Ticket
from mg_llava.serving.requests.pictures import check_boxes
from mg_llava.serving.vllm.boxed import split_boxes
from mg_llava.serving.vllm.videos import split_said
from mg_llava.videos import VideoFrames
from xtuner.data.records.messages import is_video
from xtuner.errors import XTunerError

DIST_INFO = "Metadata-Version: 2.1\nName: vllm\nVersion: {}\n"


class StubVLLM:
    """What a vLLM with this package's plug-in answers.

    Args:
        assistant: answers.
        folder: the same, exported.
        name: of the model.
        key: that is wanted.

    Attributes:
        bodies: of the requests.
        context: most tokens of prompt and answer.
    """

    def __init__(self, assistant: Assistant, folder: Path, name: str = "tiny", key: str | None = None) -> None:
        self.assistant = assistant
        self.processor = MGLLaVAProcessor.from_pretrained(str(folder))
        self.folder = folder
        self.name = name
        self.key = key
        self.context = 512
        self.bodies: list[dict[str, Any]] = []
        self.engine = BatchEngine(assistant, max_batch=4, max_queue=99)

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.middleware("http")
        async def keyed(request: Request, go_on: Any) -> Response:
            said = request.headers.get("authorization")
            if self.key and request.url.path.startswith("/v1") and said != f"Bearer {self.key}":
                return JSONResponse({"error": "Unauthorized"}, 401)
            return await go_on(request)

        @app.get("/health")
        def health() -> Response:
            return Response()

        @app.get("/v1/models")
        def models() -> dict[str, Any]:
            model = {"id": self.name, "root": str(self.folder), "max_model_len": self.context, "owned_by": "vllm"}
            return {"object": "list", "data": [model]}

        @app.post("/v1/chat/completions")
        async def complete(request: Request) -> Response:
            body = json.loads(await request.body())
            self.bodies.append(body)
            try:
                return self._complete(body)
            except XTunerError as error:
                fault = {"message": str(error), "type": "BadRequestError", "param": None, "code": 400}
                return JSONResponse({"error": fault}, 400)

        return app

    def close(self) -> None:
        self.engine.close()

    def _complete(self, body: Mapping[str, Any]) -> Response:
        if body["model"] != self.name:
            raise XTunerError(f"The model `{body['model']}` does not exist.")
        asked = read_messages(body["messages"], self._open, bool(body.get("continue_final_message")), self._open_video)
        prompt = self.engine.prepare(asked)
        used = self.engine.num_tokens(prompt)
        if used + body["max_tokens"] > self.context:
            raise XTunerError(f"This model's maximum context length is {self.context} tokens.")
        stops = tuple(body.get("stop") or ())
        sampling = Sampling(
            body["max_tokens"],
            body.get("temperature", 1.0),
            body.get("top_p", 1.0),
            stops,
            body.get("seed"),
            body.get("presence_penalty", 0.0),
            body.get("frequency_penalty", 0.0),
        )
        ticket = self.engine.submit(prompt, sampling)
        if body.get("stream"):
            return StreamingResponse(self._events(ticket, stops), media_type="text/event-stream")
        ids = list(ticket)
        choice = {"index": 0, "finish_reason": ticket.reason, "token_ids": ids, "message": {"role": "assistant"}}
        return JSONResponse({"choices": [choice], "prompt_token_ids": self._prompt_ids(asked)})

    async def _events(self, ticket: Ticket, stops: tuple[str, ...]) -> AsyncIterator[str]:
        assembler = TextAssembler(self.assistant.tokenizer, stops)
        loop = asyncio.get_running_loop()
        yield _event({"role": "assistant", "content": ""}, None)
        try:
            while True:
                try:
                    token = await loop.run_in_executor(None, ticket.next_event, 0.05)
                except queue.Empty:
                    continue
                except XTunerError as error:
                    yield f"data: {json.dumps({'error': {'message': str(error), 'code': 500}})}\n\n"
                    break
                if token is FINISHED:
                    # vLLM sends the token that ends an answer with its reason
                    last = [self.assistant.tokenizer.eos_token_id] if ticket.reason == "stop" else []
                    yield _event({}, last, ticket.reason)
                    break
                piece = assembler.add(token)
                if assembler.stopped:
                    yield _event({"content": piece}, [token], "stop", stops[0])
                    break
                yield _event({"content": piece}, [token])
            yield "data: [DONE]\n\n"
        finally:
            ticket.cancel()

    def _open(self, part: Mapping[str, Any]) -> tuple[Any, Any]:
        address, found = split_boxes(part["image_url"]["url"])
        picture = open_picture(io.BytesIO(base64.b64decode(address.partition(",")[2])))
        if found is not None:
            check_boxes(found, picture.size)
        return picture, found

    def _open_video(self, part: Mapping[str, Any]) -> VideoFrames:
        address, said = split_said(part["video_url"]["url"])
        content = base64.b64decode(address.partition(",")[2])
        return replace(said, source=content).frames(self.processor.frame_sampling)

    def _prompt_ids(self, asked: Conversation) -> list[int]:
        messages = [
            {
                "role": message.role,
                "content": [
                    {"type": "text", "text": part}
                    if isinstance(part, str)
                    else {"type": "video" if is_video(part) else "image"}
                    for part in message.parts
                ],
            }
            for message in asked.messages
        ]
        text = self.processor.apply_chat_template(messages)
        batch = self.processor(images=asked.pictures, text=text, boxes=asked.found)
        return list(batch["input_ids"][0].tolist())


def _event(delta: dict[str, str], ids: list[int] | None, reason: str | None = None, stop: str | None = None) -> str:
    choice = {"index": 0, "delta": delta, "finish_reason": reason, "stop_reason": stop, "token_ids": ids}
    return f"data: {json.dumps({'object': 'chat.completion.chunk', 'choices': [choice]})}\n\n"


def fake_package(where: Path, code: str, version: str = "0.32.0") -> Path:
    """A package ``vllm`` whose server is `code`; a folder for PYTHONPATH."""
    package = where / "vllm" / "entrypoints" / "openai"
    package.mkdir(parents=True)
    for folder in (package, *package.parents[:2]):
        (folder / "__init__.py").touch()
    (package / "api_server.py").write_text(code)
    info = where / f"vllm-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(DIST_INFO.format(version))
    return where
