"""What stands before every route, over real sockets: names, other sites' pages, keys, headers, faults, silence."""

from __future__ import annotations

import http.client
import json
import logging
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="fastapi is not installed: pip install '.[serve]'")

from mg_llava.inference.assistant import Assistant  # noqa: E402
from mg_llava.serving.access import half_open  # noqa: E402
from mg_llava.serving.access.settings import Access  # noqa: E402
from mg_llava.serving.app import make_app  # noqa: E402
from mg_llava.serving.requests import chat  # noqa: E402
from mg_llava.serving.requests.settings import Limits  # noqa: E402
from tests.mg_llava.serving.conftest import serve  # noqa: E402
from xtuner.log import get_logger  # noqa: E402

KEY = "0123456789abcdef-ü"
ASKED = json.dumps({"messages": [{"role": "user", "content": "what"}], "max_tokens": 2}).encode()


def request(url: str, method: str = "GET", path: str = "/health", body: bytes | None = None, **headers: str) -> Any:
    """Returns status, headers in small letters, and the JSON of an answer."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.putrequest(method, path, skip_host="Host" in named)
    for name, value in named.items():
        connection.putheader(name, value.encode("utf-8"))
    if body is not None:
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, json.loads(content or b"null")


HALF = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{"
"""A request whose body does not come."""


@contextmanager
def logged() -> Iterator[list[logging.LogRecord]]:
    """What the server's log gets."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler(logging.INFO)
    handler.emit = records.append  # type: ignore[method-assign]
    logger = get_logger()
    logger.addHandler(handler)
    try:
        yield records
    finally:
        logger.removeHandler(handler)


@pytest.fixture(scope="module")
def open_server(assistant: Assistant) -> Iterator[tuple[str, Any]]:
    app = make_app(assistant, Limits(max_upload=100_000, max_receive=1.0), "tiny", access=Access(("gpu.lan", "[::2]")))
    with serve(app) as url:
        yield url, app


@pytest.fixture(scope="module")
def locked_server(assistant: Assistant) -> Iterator[str]:
    with serve(make_app(assistant, None, "tiny", access=Access(api_key=KEY))) as url:
        yield url


class TestHosts:
    @pytest.mark.parametrize("host", ["localhost", "LOCALHOST:7860", "127.0.0.1:1", "[::1]:80", "gpu.lan", "[::2]"])
    def test_own_names(self, open_server: tuple[str, Any], host: str) -> None:
        assert request(open_server[0], Host=host)[0] == 200

    @pytest.mark.parametrize(
        "host",
        ["evil.example", "localhost.evil.example", "", "127.0.0.1@evil.example:x", "[::1", "127.0.0.2", "x" * 5000],
    )
    def test_other_names(self, open_server: tuple[str, Any], host: str) -> None:
        status, _, answer = request(open_server[0], Host=host)
        assert status == 403 and answer["error"]["code"] == "host_not_allowed"
        assert "--allowed-host" in answer["error"]["message"] and len(answer["error"]["message"]) < 300

    def test_any_name(self, assistant: Assistant) -> None:
        access = Access(("*",))
        assert access.takes_host("evil.example") and access.takes_host(None)


class TestOtherSites:
    def test_calls_are_refused(self, open_server: tuple[str, Any]) -> None:
        for origin in ("https://evil.example", "null", "http://localhost:9", "http://[", "http://gpu.lan.evil.example"):
            for method in ("GET", "OPTIONS"):
                status, headers, answer = request(open_server[0], method, "/v1/models", Origin=origin)
                assert status == 403 and answer["error"]["code"] == "origin_not_allowed"
                assert not any(name.startswith("access-control") for name in headers)

    def test_the_own_page_may(self, open_server: tuple[str, Any]) -> None:
        url, _ = open_server
        assert request(url, Origin=url)[0] == 200
        # behind a proxy with TLS that asks under this machine's name
        assert request(url, Origin="https://gpu.lan", Host="localhost")[0] == 200


class TestKey:
    @pytest.mark.parametrize(
        "said", [None, "", "Bearer", "Bearer ", f"Basic {KEY}", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", "Bearer \u20ac"]
    )
    def test_without(self, locked_server: str, said: str | None) -> None:
        headers = {} if said is None else {"Authorization": said}
        for path in ("/v1/models", "/v1/chat/completions", "/V1/x", "//v1/models", "/%761/models"):
            status, _, answer = request(locked_server, "GET", path, **headers)
            assert status == 401 and answer["error"]["code"] == "invalid_api_key"
        assert request(locked_server)[0] == 200

    def test_with(self, locked_server: str) -> None:
        path = "/v1/chat/completions"
        status, _, answer = request(locked_server, "POST", path, ASKED, Authorization=f"bearer {KEY}")
        assert status == 200 and answer["choices"]


class TestHeaders:
    def test_of_every_answer(self, open_server: tuple[str, Any]) -> None:
        for path in ("/health", "/nowhere", "/v1/nowhere"):
            _, headers, _ = request(open_server[0], "GET", path)
            assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
            assert "frame-ancestors 'none'" in headers["content-security-policy"] and "server" not in headers
        assert request(open_server[0], Host="evil.example")[1]["x-frame-options"] == "DENY"


class TestFaults:
    def test_what_nobody_foresaw(self, open_server: tuple[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
        url, _ = open_server

        def fail(*_: object, **__: object) -> None:
            raise KeyError("nobody thought of it")

        with monkeypatch.context() as patch, logged() as records:
            patch.setattr(chat, "read_messages", fail)
            status, headers, answer = request(url, "POST", "/v1/chat/completions", ASKED)
        assert status == 500 and answer["error"]["type"] == "server_error"
        number = headers["x-request-id"]
        assert number in answer["error"]["message"] and "nobody thought" not in answer["error"]["message"]
        (record,) = records
        assert number in record.getMessage() and record.exc_info is not None
        assert "nobody thought" in str(record.exc_info[1])
        assert request(url, "POST", "/v1/chat/completions", ASKED)[0] == 200

    @pytest.mark.parametrize(
        ("method", "path", "status"),
        [
            ("GET", "/v1/chat/completions", 405),
            ("DELETE", "/v1/models", 405),
            ("POST", "/v1/embeddings", 404),
            ("GET", "/v1/", 404),
            ("GET", "/other", 404),
            ("PUT", "/health", 405),
        ],
    )
    def test_paths(self, open_server: tuple[str, Any], method: str, path: str, status: int) -> None:
        found, _, answer = request(open_server[0], method, path)
        assert found == status and answer["error"]["type"] == "invalid_request_error"


class TestConnections:
    def test_an_upload_that_stops_is_given_up(self, open_server: tuple[str, Any]) -> None:
        url, app = open_server
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=20) as client:
            client.sendall(HALF)
            answer = b"".join(iter(lambda: client.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 408") and b"did not come within 1 s" in answer
        assert app.state.engine.load()["waiting"] == 0

    def test_an_aborted_upload_costs_a_line(self, open_server: tuple[str, Any]) -> None:
        host, port = open_server[0].removeprefix("http://").split(":")
        with logged() as records:
            with socket.create_connection((host, int(port)), timeout=20) as client:
                client.sendall(
                    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{"
                )
                time.sleep(0.2)
            deadline = time.monotonic() + 10
            while not records and time.monotonic() < deadline:
                time.sleep(0.02)
            time.sleep(0.2)
        (record,) = records
        assert record.getMessage() == "a client went away before its request was complete" and not record.exc_info

    def test_silence_and_half_a_head_are_closed(
        self, open_server: tuple[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(half_open, "HEADER_SECONDS", 0.5)
        host, port = open_server[0].removeprefix("http://").split(":")
        for sent in (
            b"",
            b"GET /health HTTP/1.1\r\nHost: local",
            b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET",
        ):
            with socket.create_connection((host, int(port)), timeout=10) as client:
                start = time.monotonic()
                client.sendall(sent)
                while client.recv(65536):
                    pass
                assert 0.3 < time.monotonic() - start < 8
