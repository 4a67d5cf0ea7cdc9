"""``xtuner serve`` as a user starts it: a real process, and what it says before a model is loaded."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="fastapi is not installed: pip install '.[serve]'")

from mg_llava.hf import save_pretrained  # noqa: E402
from mg_llava.serving import command  # noqa: E402
from mg_llava.serving.proxy import child  # noqa: E402
from mg_llava.serving.proxy.checks import example  # noqa: E402
from mg_llava.serving.proxy.prompts import PromptSender  # noqa: E402
from mg_llava.serving.vllm import versions  # noqa: E402
from tests.stub_vllm import fake_package  # noqa: E402
from tests.tiny_assistant import tiny_assistant  # noqa: E402
from xtuner.cli import main, run_command  # noqa: E402
from xtuner.errors import XTunerError  # noqa: E402


def error_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
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
def started(
    folder: Path, *words: str, stderr: Any = None, **environment: str
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """``xtuner serve`` on a free port, and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "xtuner", "serve", str(folder), "--port", str(port), *words]
    server = subprocess.Popen(command, stderr=stderr, env={**os.environ, "OMP_NUM_THREADS": "1", **environment})
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


VLLM = """
import http.server, json, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer({"data": [{"id": "tiny", "max_model_len": 512}]})
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not body.get("stream"):
            self.answer({"prompt_token_ids": IDS})
        elif "dog" in str(body["messages"]):
            print("RuntimeError: CUDA error: an illegal memory access was encountered", flush=True)
            os._exit(3)
        else:
            choice = {"delta": {}, "token_ids": [6, 2], "finish_reason": "stop", "stop_reason": None}
            event = b"data: " + json.dumps({"choices": [choice]}).encode() + b"\\n\\ndata: [DONE]\\n\\n"
            self.answer(event)
    def answer(self, content):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
if __name__ == "__main__":
    port = int(sys.argv[sys.argv.index("--port") + 1])
    print("fake vLLM has pid", os.getpid(), flush=True)
    http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def fake_vllm(folder: Path) -> str:
    """The code of a server that reads one question as `folder` does, and always answers "blue"."""
    return f"IDS = {example(PromptSender(folder))[1]}\n{VLLM}"


def question(url: str, words: str) -> urllib.request.Request:
    body = {"messages": [{"role": "user", "content": words}], "max_tokens": 3}
    return urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode())


class TestVLLM:
    """Another program stands in the place of vLLM's server."""

    @pytest.fixture(autouse=True)
    def installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(versions, "installed_version", lambda: "0.32.0")

    def serve(self, folder: Path, code: str, monkeypatch: pytest.MonkeyPatch, port: int = 0, *words: str) -> str:
        """Serves until vLLM ends; returns what the program says."""
        monkeypatch.setattr(child, "PROGRAM", ("-c", code))
        arguments = [str(folder), "--name", "tiny", "--no-page", "--port", str(port), "--backend", "vllm", *words]
        with pytest.raises(XTunerError) as error:
            run_command("serve", command, arguments)
        return str(error.value)

    def test_it_ends_at_the_start(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        said = self.serve(folder, "raise ValueError('No available memory for the cache blocks')", monkeypatch)
        assert "ended with exit code 1: No available memory for the cache blocks; --backend-args" in said

    def test_it_ends_in_the_middle_of_a_request(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The one who asks gets the sentence, and so does who started it; nothing is left waiting."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        answers: list[str] = []

        def ask() -> None:
            for words in ("what", "dog"):
                try:
                    with urllib.request.urlopen(question(f"http://127.0.0.1:{port}", words), timeout=120) as answer:
                        answers.append(json.load(answer)["choices"][0]["message"]["content"])
                except urllib.error.HTTPError as error:
                    answers.append(f"{error.code} {json.loads(error.read())['error']['message']}")

        # the socket listens before vLLM is there; until then requests wait
        client = threading.Timer(0.5, ask)
        client.start()
        said = self.serve(folder, fake_vllm(folder), monkeypatch, port)
        client.join(120)
        assert "ended with exit code 3: CUDA error: an illegal memory access" in said
        assert answers[0] == "red" and answers[1].startswith("500 vLLM, which served") and "not answered" in answers[1]


@pytest.mark.slow
@pytest.mark.multi_process
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_vllm_ends_with_the_server(folder: Path, tmp_path: Path, number: signal.Signals) -> None:
    packages = fake_package(tmp_path, fake_vllm(folder))
    path = os.pathsep.join([str(packages), os.environ.get("PYTHONPATH", "")])
    log = tmp_path / "log"
    with (
        log.open("wb") as file,
        started(folder, "--no-page", "--name", "tiny", "--backend", "vllm", stderr=file, PYTHONPATH=path) as (
            server,
            url,
        ),
    ):
        assert json.loads(fetch(server, question(url, "what")))["choices"][0]["message"]["content"] == "red"
        (pid,) = re.findall(r"vLLM: fake vLLM has pid (\d+)", log.read_text())
        server.send_signal(number)
        server.wait(60)
    deadline = time.monotonic() + 60
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
