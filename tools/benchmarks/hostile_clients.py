"""Clients that poison, flood and leave, on one real server; rows of `abuse.py`."""

from __future__ import annotations

import collections
import json
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools.benchmarks.generate_batch import tiny_folder  # noqa: E402
from tools.benchmarks.serving import GROWTH, Load, picture, resident, wait  # noqa: E402

CLIENTS = 16
NEW_TOKENS = 32
SECONDS = 30.0
ROUNDS = 3
BOXES = 250_000
DEPARTED = 4

POISONS: list[dict[str, Any]] = [
    {"temperature": 1, "top_p": 0},
    {"temperature": 1, "top_p": 1e-320},
    {"temperature": 1e-320},
    {"temperature": 1, "top_p": float("nan")},
    {"temperature": float("nan")},
    {"temperature": 1e300},
    {"temperature": -1},
    {"temperature": 1, "top_p": -1},
    {"temperature": 1, "seed": 2**64},
    {"temperature": 1, "seed": -(2**64)},
    {"temperature": 1, "seed": 10**4000},
    {"max_tokens": 10**30},
    {"max_tokens": 0},
    {"stop": ["x" * 100_000] * 4},
    {"stop": [""]},
    {"presence_penalty": 1e300},
    {"n": 10**9},
    {"logprobs": True, "top_logprobs": 10**9},
    {"logit_bias": {"-1": 1e300}},
    {"messages": []},
    {"messages": [3]},
    {"messages": [{"role": "user", "content": "\ud83d"}]},
    {"messages": [{"role": "user", "content": "x " * 500_000}]},
]
"""Each is sent with an ordinary request's other fields."""


class Found(NamedTuple):
    """What a row found, and whether it is within its bound."""

    found: str
    within: bool


@contextmanager
def server(folder: Path, *words: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """``xtuner serve`` with a tiny model on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    model = tiny_folder(folder)
    command = [sys.executable, "-m", "xtuner", "serve", str(model), "--no-page", "--port", str(port), *words]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        wait(f"http://127.0.0.1:{port}")
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


def crowd(url: str, seconds: float) -> tuple[Load, list[threading.Thread]]:
    """Starts clients that ask without pause."""
    load = Load(url, seconds, NEW_TOKENS)
    threads = [threading.Thread(target=load.client) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    return load, threads


def answers_a_second(url: str, seconds: float) -> float:
    """What a crowd gets."""
    load, threads = crowd(url, seconds)
    for thread in threads:
        thread.join()
    return load.statuses[200] / seconds


def poisoned(folder: Path) -> Found:
    """Poisoned requests among a crowd's: how many of the crowd's answers fail."""
    with server(folder, "--max-queue", str(2 * CLIENTS)) as (_, url):
        load, threads = crowd(url, SECONDS / 2)
        said: collections.Counter[int] = collections.Counter()
        while any(thread.is_alive() for thread in threads):
            for poison in POISONS:
                said[_send(url, poison)] += 1
        for thread in threads:
            thread.join()
    failed = sum(load.statuses.values()) - load.statuses[200]
    broken = {status: count for status, count in said.items() if status >= 500}
    found = f"{failed} of {sum(load.statuses.values()):,} among {sum(said.values()):,} poisoned ({dict(said)})"
    return Found(found, failed == 0 and load.statuses[200] > 0 and not broken)


def departed(folder: Path) -> Found:
    """What a crowd gets after clients sent a flood of boxes and left, against what it gets without."""
    with server(folder, "--max-queue", str(2 * CLIENTS)) as (_, url):
        answers_a_second(url, 3)
        # in turns, so that what else the machine does falls on both
        before, after = [], []
        for _ in range(ROUNDS):
            before.append(answers_a_second(url, SECONDS / ROUNDS))
            for count in (BOXES, 1000):
                for _ in range(DEPARTED):
                    _leave(url, count)
            after.append(answers_a_second(url, SECONDS / ROUNDS))
    share = sum(after) / sum(before)
    found = f"{sum(after) / ROUNDS:.1f} of {sum(before) / ROUNDS:.1f} answers/s ({share:.0%})"
    return Found(found, share >= 0.9)


def crowded(folder: Path) -> Found:
    """A crowd for a minute: the server's memory after a fifth of the time and at the end."""
    memory = []
    with server(folder) as (process, url):
        load, threads = crowd(url, 2 * SECONDS)
        while any(thread.is_alive() for thread in threads):
            memory.append(resident(process.pid))
            time.sleep(1)
    fifth = len(memory) // 5
    early, late = statistics.median(memory[fifth : 2 * fifth]), statistics.median(memory[-fifth:])
    found = f"{early:.0f} MB after a fifth, {late:.0f} MB at the end; {dict(load.statuses)}"
    return Found(found, late <= early * GROWTH and set(load.statuses) <= {200, 429})


def _request(poison: dict[str, Any]) -> bytes:
    body = {"messages": [{"role": "user", "content": "Is it red"}], "max_tokens": NEW_TOKENS, **poison}
    return json.dumps(body).encode()


def _send(url: str, poison: dict[str, Any]) -> int:
    request = urllib.request.Request(f"{url}/v1/chat/completions", _request(poison))
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            json.load(answer)
            return int(answer.status)
    except urllib.error.HTTPError as error:
        json.load(error)
        return error.code


def _leave(url: str, boxes: int) -> None:
    """Sends a whole request with so many boxes, and hangs up."""
    image = {"type": "image_url", "image_url": {"url": picture()}, "boxes": [[2, 3, 20, 25]] * boxes}
    body = _request({"messages": [{"role": "user", "content": [image, {"type": "text", "text": "Is it red"}]}]})
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as client:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body)
