"""An OpenAI-compatible endpoint of the standard library, for tests of judges and of models at an endpoint."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Stub:
    """What the endpoint was asked, and how it replies.

    Attributes:
        url: for OPENAI_BASE_URL.
        requests: bodies of the requests, in order.
        keys: their Authorization headers.
        statuses: HTTP status of the coming replies, first to last; 200 when used up.
        refusal: body of replies that are not 200.
        headers: of these.
        answers_as: the model that replies name; None = the one that was asked.
        models: what ``/models`` lists, id and owner; None = it is not there.
    """

    def __init__(self, reply: Callable[[str], str]) -> None:
        self.reply = reply
        self.url = ""
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.statuses: list[int] = []
        self.refusal: dict[str, Any] = {"error": {"message": "no"}}
        self.headers: dict[str, str] = {}
        self.answers_as: str | None = None
        self.models: dict[str, str] | None = None
        self.lock = threading.Lock()


@contextmanager
def stub_endpoint(reply: Callable[[str], str]) -> Iterator[Stub]:
    """Serves on a free port of this machine; `reply` makes the answer to a prompt."""
    stub = Stub(reply)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with stub.lock:
                stub.requests.append({"path": self.path, **body})
                stub.keys.append(self.headers["Authorization"])
                status = stub.statuses.pop(0) if stub.statuses else 200
            content = stub.reply(body["messages"][0]["content"]) if status == 200 else ""
            message = {"message": {"role": "assistant", "content": content}}
            reply = stub.refusal if status >= 400 else {"model": stub.answers_as or body["model"], "choices": [message]}
            payload = json.dumps(reply).encode()
            self.send_response(status)
            for name, value in stub.headers.items() if status >= 400 else ():
                self.send_header(name, value)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def do_GET(self) -> None:
            known = stub.models is not None and self.path == "/v1/models"
            listed = [{"id": key, "object": "model", "owned_by": owner} for key, owner in (stub.models or {}).items()]
            payload = json.dumps({"object": "list", "data": listed}).encode()
            self.send_response(200 if known else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    stub.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
