"""``xtuner serve`` as a user starts it: a real process, and what it says before a model is loaded."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="fastapi is not installed: pip install '.[serve]'")

from mg_llava.hf import save_pretrained  # noqa: E402
from mg_llava.serving import command  # noqa: E402
from tests.tiny_assistant import tiny_assistant  # noqa: E402
from xtuner.cli import main, run_command  # noqa: E402


def error_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    from xtuner.errors import XTunerError

    with pytest.raises(XTunerError) as error:
        run_command("serve", command, ["nowhere", *words])
    return str(error.value)


class TestMistakes:
    def test_a_taken_port(self, capsys: pytest.CaptureFixture[str]) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            assert "choose another --port" in error_of(capsys, "--no-page", "--port", str(taken.getsockname()[1]))

    def test_numbers_and_folders(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert "--max-batch is 0" in error_of(capsys, "--no-page", "--max-batch", "0")
        assert "--max-wait is -1.0" in error_of(capsys, "--no-page", "--max-wait", "-1")
        assert "--port is 99999: expected 0" in error_of(capsys, "--no-page", "--port", "99999")
        assert "--examples 'absent'" in error_of(capsys, "--no-page", "--examples", "absent")
        assert "neither a file nor a known name" in error_of(capsys, "--no-page", "--port", "0")

    def test_a_key_stands_in_the_environment(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("MG_LLAVA_API_KEY", raising=False)
        assert "MG_LLAVA_API_KEY holds 0 characters" in error_of(capsys, "--no-page", "--api-key")
        monkeypatch.setenv("OTHER", "short")
        assert "OTHER holds 5 characters: set it to a key" in error_of(capsys, "--no-page", "--api-key", "OTHER")
        monkeypatch.setenv("OTHER", "0123456789abcdef")
        # the key is taken, and the model is what is missing
        message = error_of(capsys, "--no-page", "--port", "0", "--api-key", "OTHER")
        assert "neither a file nor a known name" in message and "0123456789abcdef" not in message

    def test_a_missing_package(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        find = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gradio" else find(name))
        message = error_of(capsys)
        assert "serving needs the package gradio" in message and "--no-page" in message


def test_is_a_command_of_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--help"]) == 0
    assert "OpenAI-compatible" in capsys.readouterr().out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("served")
    assistant, node = tiny_assistant(root / "parts")
    return save_pretrained(assistant, node, root / "hf")


@contextmanager
def started(folder: Path, *words: str, **environment: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """``xtuner serve`` on a free port, and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "xtuner", "serve", str(folder), "--port", str(port), *words]
    server = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1", **environment})
    try:
        yield server, f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait(30)


def fetch(server: subprocess.Popen[bytes], request: urllib.request.Request) -> bytes:
    """The socket listens before the model is there; the request waits for it."""
    deadline = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return bytes(answer.read())
        except OSError:
            assert time.monotonic() < deadline and server.poll() is None
            time.sleep(0.3)


@pytest.mark.slow
@pytest.mark.multi_process
def test_answers_and_ends(folder: Path) -> None:
    with started(folder, "--no-page") as (server, url):
        body = {"messages": [{"role": "user", "content": "what"}], "max_tokens": 3}
        request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode())
        assert json.loads(fetch(server, request))["choices"][0]["message"]["content"]
        server.send_signal(signal.SIGINT)
        assert server.wait(30) in (0, 130)


@pytest.mark.slow
@pytest.mark.multi_process
@pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="gradio is not installed")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_files_of_visitors_go_with_the_server(folder: Path, tmp_path: Path, number: signal.Signals) -> None:
    with started(folder, TMPDIR=str(tmp_path)) as (server, url):
        assert b"MG-LLaVA" in fetch(server, urllib.request.Request(url))
        (uploads,) = tmp_path.glob("mg_llava_page_*")
        (uploads / "photo.png").write_bytes(b"of a visitor")
        server.send_signal(number)
        server.wait(30)
        assert not uploads.exists()
