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

    def test_a_missing_package(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        find = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gradio" else find(name))
        message = error_of(capsys)
        assert "serving needs the package gradio" in message and "--no-page" in message


def test_is_a_command_of_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--help"]) == 0
    assert "OpenAI-compatible" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.multi_process
def test_answers_and_ends(tmp_path: Path) -> None:
    assistant, node = tiny_assistant(tmp_path / "parts")
    folder = save_pretrained(assistant, node, tmp_path / "hf")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "xtuner", "serve", str(folder), "--no-page", "--port", str(port)]
    server = subprocess.Popen(words, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        body = {"messages": [{"role": "user", "content": "what"}], "max_tokens": 3}
        request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(body).encode())
        deadline = time.monotonic() + 120
        while True:
            try:
                # the socket listens before the model is there; the request waits for it
                with urllib.request.urlopen(request, timeout=120) as answer:
                    assert json.load(answer)["choices"][0]["message"]["content"]
                break
            except OSError:
                assert time.monotonic() < deadline and server.poll() is None
                time.sleep(0.3)
    finally:
        server.send_signal(signal.SIGINT)
        assert server.wait(30) in (0, 130)
