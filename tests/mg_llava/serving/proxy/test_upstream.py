"""The way to a vLLM server: what it refuses, where it fails, and where it is none."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from mg_llava.serving.generation.tickets import Overloaded, Refused
from mg_llava.serving.proxy.checks import find_model
from mg_llava.serving.proxy.upstream import Gone, Upstream
from xtuner.errors import XTunerError


def event(value: Any) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


CHUNK = event({"choices": [{"delta": {"content": "a"}, "token_ids": [4], "finish_reason": None}]})


@contextmanager
def answering(status: int, content: bytes, announced: int = 0) -> Iterator[Upstream]:
    """A server with one answer to everything; `announced` more bytes than come."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            self.send_header("Content-Length", str(len(content) + announced))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield Upstream(f"http://127.0.0.1:{server.server_address[1]}/v1/", "key")
    finally:
        server.shutdown()
        server.server_close()


def streamed(upstream: Upstream) -> list[Any]:
    return list(upstream.stream({}, lambda _: None))


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:8000", "ftp://a", "http://", "http://a:99999", "http://u:p@a", "http://a?b"]
)
def test_no_address(url: str) -> None:
    with pytest.raises(XTunerError, match=r"is none of a server: expected http://HOST:PORT"):
        Upstream(url)


@pytest.mark.parametrize("key", ["sk-12\n", "schl\u00fcssel"])
def test_no_key(key: str) -> None:
    with pytest.raises(XTunerError, match="VLLM_API_KEY holds a line break, or") as found:
        Upstream("http://a:1", key)
    assert key.strip() not in str(found.value)


def test_nothing_answers() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        upstream = Upstream(f"http://127.0.0.1:{free.getsockname()[1]}")
    with pytest.raises(Gone, match="does not answer .Connection refused."):
        upstream.get("/health")


@pytest.mark.parametrize(
    ("status", "content", "kind", "message"),
    [
        (400, {"error": {"message": "too long", "code": 400}}, Refused, "vLLM: too long"),
        (404, {"error": {"message": "no such model"}}, Refused, "vLLM: no such model"),
        (401, {"error": "Unauthorized"}, XTunerError, "wants another API key: put it into .* VLLM_API_KEY"),
        (429, {"error": {"message": "busy"}}, Overloaded, "vLLM: busy"),
        (500, {"error": {"message": "engine is dead"}}, XTunerError, "vLLM: engine is dead"),
        (502, "<html>", XTunerError, "answers 502 .*expected a vLLM server"),
    ],
)
def test_refusals(status: int, content: Any, kind: type, message: str) -> None:
    body = content.encode() if isinstance(content, str) else json.dumps(content).encode()
    with answering(status, body) as upstream, pytest.raises(XTunerError, match=message) as error:
        streamed(upstream)
    assert type(error.value) is kind


@pytest.mark.parametrize(
    ("content", "announced", "message"),
    [
        (CHUNK, 0, "broke off in the middle"),
        (CHUNK, 100, "broke off in the middle|does not answer"),
        (CHUNK + b"data: {\n\n", 0, "is no JSON"),
        (CHUNK + event({"error": {"message": "EngineCore died", "code": 500}}), 0, "vLLM: EngineCore died"),
    ],
)
def test_answers_that_break_off(content: bytes, announced: int, message: str) -> None:
    with answering(200, content, announced) as upstream, pytest.raises(XTunerError, match=message):
        streamed(upstream)


def test_a_whole_stream() -> None:
    with answering(200, b": ping\n\n" + CHUNK + b"data: [DONE]\n\n") as upstream:
        (only,) = streamed(upstream)
    assert only["choices"][0]["token_ids"] == [4]


@pytest.mark.parametrize("begun", [b"", b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + CHUNK])
def test_one_that_is_cancelled_ends_at_once(begun: bytes) -> None:
    """The server says nothing more, and keeps the connection; it is broken off from another thread."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        upstream = Upstream(f"http://127.0.0.1:{listener.getsockname()[1]}")
        ends: list[Any] = []
        came: list[Any] = []
        client = threading.Thread(target=_keep_events, args=(upstream, ends.append, came))
        client.start()
        connection, _ = listener.accept()
        with connection:
            connection.sendall(begun)
            deadline = time.monotonic() + 30
            while not ends or len(came) < bool(begun):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            ends[0]()
            client.join(30)
            assert not client.is_alive() and isinstance(came[-1], Gone) and len(came) == 1 + bool(begun)


def _keep_events(upstream: Upstream, when_cancelled: Any, came: list[Any]) -> None:
    try:
        for one in upstream.stream({}, when_cancelled):
            came.append(one)
    except XTunerError as error:
        came.append(error)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html>", "is not as vLLM has it"),
        (b"[" * 100_000, "is not as vLLM has it"),
        (b'{"data": [{"id": "tiny", "owned_by": "mg-llava"}]}', "names no max_model_len"),
        (
            b'{"data": [{"id": "gpt", "root": "/m/gpt", "max_model_len": 9}]}',
            "serves 'gpt', not 'tiny'.*--backend-model",
        ),
        (b'{"data": []}', "serves nothing, not 'tiny'"),
    ],
)
def test_another_server(content: bytes, message: str) -> None:
    with answering(200, content) as upstream, pytest.raises(XTunerError, match=message):
        find_model(upstream, Path("/x/tiny"))


def test_the_model_is_known_by_its_folder_or_by_its_name() -> None:
    content = b'{"data": [{"id": "a", "root": "/y/tiny", "max_model_len": 9}, {"id": "b", "max_model_len": 8}]}'
    with answering(200, content) as upstream:
        assert find_model(upstream, Path("/x/tiny")) == ("a", 9)
        assert find_model(upstream, Path("/x/b")) == ("b", 8)
        assert find_model(upstream, Path("/x/tiny"), "b") == ("b", 8)
        with pytest.raises(XTunerError, match="serves 'a', 'b', not 'c'"):
            find_model(upstream, Path("/x/tiny"), "c")
