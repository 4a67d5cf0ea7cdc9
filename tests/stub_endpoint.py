"""An OpenAI-compatible endpoint of the standard library, for tests of judges."""

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
    """

    def __init__(self, reply: Callable[[str], str]) -> None:
        self.reply = reply
        self.url = ""
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.statuses: list[int] = []
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
            content = stub.reply(body["messages"][0]["content"])
            payload = json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]}).encode()
            self.send_response(status)
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
