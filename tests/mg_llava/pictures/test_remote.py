"""Pictures from other servers: only public addresses, whatever the address, its name or a redirect says."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpcore
import pytest

from mg_llava.pictures import remote
from mg_llava.pictures.remote import PublicBackend, fetch, is_public
from xtuner.errors import XTunerError

PUBLIC = "93.184.215.14"


class Page(http.server.BaseHTTPRequestHandler):
    """Answers by its path."""

    seen: list[str] = []

    def do_GET(self) -> None:
        self.seen.append(f"{self.headers['Host']}{self.path}")
        if self.path.startswith("/to="):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to="))
            self.end_headers()
            return
        self.send_response(404 if self.path == "/absent" else 200)
        if self.path == "/packed":
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        if self.path == "/slow":
            for _ in range(100):
                self.wfile.write(b"x")
                time.sleep(0.1)
        self.wfile.write(b"picture" * (1000 if self.path == "/large" else 1))

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def page() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Page.seen.clear()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()


def backend(
    port: int, monkeypatch: pytest.MonkeyPatch, names: Mapping[str, list[str]] | None = None
) -> tuple[PublicBackend, list[str]]:
    """A `PublicBackend` whose connections end at the page of this test, and the addresses that it connected to."""
    reached: list[str] = []
    ordinary = httpcore.SyncBackend.connect_tcp

    def connect(self: Any, host: str, _: int, *arguments: Any, **keywords: Any) -> Any:
        reached.append(host)
        return ordinary(self, "127.0.0.1", port, *arguments, **keywords)

    monkeypatch.setattr(httpcore.SyncBackend, "connect_tcp", connect)
    known = {"public.example": [PUBLIC], "PUBLIC.example": [PUBLIC], **(names or {})}
    return PublicBackend(time.monotonic() + 5, lambda host, _: known.get(host, [host])), reached


@pytest.mark.parametrize(
    ("address", "public"),
    [
        (PUBLIC, True),
        ("2606:4700::1111", True),
        ("127.0.0.1", False),
        ("127.8.8.8", False),
        ("0.0.0.0", False),
        ("10.1.2.3", False),
        ("172.20.0.1", False),
        ("192.168.0.9", False),
        ("100.64.0.1", False),
        ("169.254.169.254", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("198.18.0.1", False),
        ("::", False),
        ("::1", False),
        ("::7f00:1", False),
        ("fe80::1%eth0", False),
        ("fc00::1", False),
        ("fd00:ec2::254", False),
        ("fec0::1", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:10.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b::a9fe:a9fe", False),
        ("2002:7f00:1::", False),
        ("2001:0:4136:e378:8000:63bf:80ff:fffe", False),
    ],
)
def test_addresses(address: str, public: bool) -> None:
    assert is_public(address) is public


class TestFetch:
    def test_a_public_picture(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with page() as port:
            through, reached = backend(port, monkeypatch)
            assert fetch("http://public.example/a.png", 100, backend=through) == b"picture"
        # the connection went to the address that was looked at, the request names the host
        assert reached == [PUBLIC] and Page.seen == ["public.example/a.png"]

    def test_redirects_are_followed_and_looked_at(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with page() as port:
            through, reached = backend(port, monkeypatch)
            assert fetch("http://public.example/to=/to=/a.png", 100, backend=through) == b"picture"
            assert reached and set(reached) == {PUBLIC}

    @pytest.mark.parametrize(
        "url",
        [
            "http://127.0.0.1/a",
            "http://localhost/a",
            "http://[::1]/a",
            "http://[::ffff:127.0.0.1]/a",
            "http://169.254.169.254/latest/meta-data",
            "http://mixed.example/a",
            "http://nothing.example/a",
            "http://public.example/to=http://127.0.0.1/a",
            "http://public.example/to=http://inside.example/a",
            "http://public.example/to=//127.0.0.1/a",
            "http://public.example/to=file:///etc/passwd",
            "http://public.example/to=http://public.example:22/",
            "http://public.example/to=/to=/to=/to=/to=/a",
            "http://public.example:22/",
            "http://public.example:99999/",
            "http://someone@public.example/a",
            "http://public.example/absent",
            "http://public.example/packed",
            "http://public.example/large",
            "http://",
            "http://[::1",
            "http://" + "a" * 300 + ".example/",
            "http://public.example/\r\nX: y",
            "http://public.example/\u0130\ud800",
            "https://public.example/not-tls",
            "ftp://public.example/a",
        ],
    )
    def test_refusals_in_the_same_words(self, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
        names = {
            "localhost": ["127.0.0.1"],
            "inside.example": ["10.0.0.1"],
            "mixed.example": [PUBLIC, "10.0.0.1"],
            "nothing.example": [],
        }
        with page() as port:
            through, reached = backend(port, monkeypatch, names)
            with pytest.raises(XTunerError) as error:
                fetch(url, 1000, backend=through)
        assert str(error.value) == remote.REFUSED
        assert set(reached) <= {PUBLIC} and not any("X: y" in seen for seen in Page.seen)

    def test_a_slow_one_ends_in_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with page() as port:
            through, _ = backend(port, monkeypatch)
            through.deadline = time.monotonic() + 0.5
            start = time.monotonic()
            with pytest.raises(XTunerError):
                fetch("http://public.example/slow", 1000, backend=through)
        assert time.monotonic() - start < 5

    def test_only_allowed_hosts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with page() as port:
            through, reached = backend(port, monkeypatch)
            assert fetch("http://PUBLIC.example/a.png", 100, ("public.example",), through) == b"picture"
            for url in ("http://other.example/", "http://public.example.evil.example/", f"http://{PUBLIC}/"):
                with pytest.raises(XTunerError):
                    fetch(url, 100, ("public.example",), through)
            with pytest.raises(XTunerError):
                fetch("http://public.example/to=http://other.example/", 100, ("public.example",), through)
        assert set(reached) == {PUBLIC} and all(seen.lower().startswith("public.example/") for seen in Page.seen)
