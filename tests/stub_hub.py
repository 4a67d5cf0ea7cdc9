"""A Hugging Face Hub of the standard library that takes commits, for tests of pushing."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class StubHub:
    """What was pushed, and how the Hub replies.

    Attributes:
        url: its address.
        user: reply of ``whoami``.
        refuse: HTTP status by a part of a path; others are served.
        repositories: created ones, name to the request's content.
        files: content of each file by its path, of the last commit.
        deleted: paths that commits deleted.
    """

    def __init__(self) -> None:
        self.url = ""
        self.user: dict[str, Any] = {"name": "me", "auth": {"accessToken": {"role": "write"}}, "orgs": []}
        self.refuse: dict[str, int] = {}
        self.repositories: dict[str, dict[str, Any]] = {}
        self.files: dict[str, bytes] = {"model-00001-of-00002.safetensors": b"old"}
        self.deleted: list[str] = []

    def reply(self, method: str, path: str, body: bytes) -> Any:
        """Serves one request of the client."""
        if path == "/api/whoami-v2":
            return self.user
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, (asked.get("organization") or self.user["name"], asked["name"])))
            self.repositories[name] = asked
            return {"url": f"{self.url}/{name}"}
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        if "/preupload/" in path:
            files = json.loads(body)["files"]
            return {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
        if "/tree/" in path:
            return [{"type": "file", "path": name, "size": len(c), "oid": "0"} for name, c in self.files.items()]
        if "/commit/" in path:
            for line in map(json.loads, body.decode().splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "deletedFile":
                    self.deleted.append(line["value"]["path"])
                    del self.files[line["value"]["path"]]
            name = path.removeprefix("/api/models/").partition("/commit/")[0]
            return {"commitUrl": f"{self.url}/{name}/commit/1", "commitOid": "1", "success": True}
        assert method == "GET", path
        return {"id": path.removeprefix("/api/models/").split("/revision/")[0], "sha": "0", "siblings": []}


@contextmanager
def stub_hub() -> Iterator[StubHub]:
    """Serves on a free port of this machine."""
    hub = StubHub()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = self.path.partition("?")[0]
            status = next((code for part, code in hub.refuse.items() if part in path), 200)
            content = hub.reply(self.command, path, body) if status == 200 else {"error": "you may not"}
            payload = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(payload)))
            if status != 200:
                self.send_header("X-Error-Message", "you may not")
            self.end_headers()
            self.wfile.write(payload)

        do_GET = do_POST = answer

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
