"""16 clients for 60 s on one server: `python tools/benchmarks/serving.py`.

Starts `xtuner serve FOLDER --no-page` (a tiny model without --folder), lets clients ask without pause, prints answers
by status, latency, and the server's memory over time. Fails where anything but 200 and 429 came, or memory grew.
"""

from __future__ import annotations

import argparse
import base64
import collections
import io
import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools.benchmarks.generate_batch import tiny_folder  # noqa: E402

GROWTH = 1.05
"""Most that the last fifth's memory may be of that after the first fifth."""


def picture() -> str:
    """A data URL of a small picture of noise."""
    stream = io.BytesIO()
    Image.frombytes("RGB", (40, 30), random.randbytes(40 * 30 * 3)).save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


class Load:
    """Clients and what they saw."""

    def __init__(self, url: str, seconds: float, new_tokens: int) -> None:
        self.url = url
        self.end = time.monotonic() + seconds
        self.new_tokens = new_tokens
        self.statuses: collections.Counter[int | str] = collections.Counter()
        self.latencies: list[float] = []
        self.lock = threading.Lock()

    def client(self) -> None:
        """Asks until the time is over; a refused one waits as long as it is told."""
        while time.monotonic() < self.end:
            start = time.monotonic()
            status = self.ask()
            with self.lock:
                self.statuses[status] += 1
                if status == 200:
                    self.latencies.append(time.monotonic() - start)
            if status == 429:
                time.sleep(1)

    def ask(self) -> int | str:
        """One request; returns its status, or what went wrong."""
        image = {"type": "image_url", "image_url": {"url": picture()}, "boxes": [[2, 3, 20, 25]]}
        content = [image, {"type": "text", "text": "Is it red"}]
        body = {"messages": [{"role": "user", "content": content}], "max_tokens": self.new_tokens, "temperature": 1.0}
        request = urllib.request.Request(f"{self.url}/v1/chat/completions", json.dumps(body).encode())
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                json.load(answer)
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError as error:
            return type(error).__name__


def resident(pid: int) -> float:
    """Memory of a process in MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1e3
    return 0.0


def main() -> int:
    """Runs the load; returns 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", help="exported folder (default: a tiny one)")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--max-queue", type=int, default=4)
    parser.add_argument("--port", type=int, default=17860)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or str(tiny_folder(Path(temporary)))
        command = [sys.executable, "-m", "xtuner", "serve", folder, "--no-page", "--port", str(args.port)]
        server = subprocess.Popen([*command, "--max-queue", str(args.max_queue)])
        try:
            return run(server, f"http://127.0.0.1:{args.port}", args)
        finally:
            server.terminate()
            server.wait(30)


def run(server: subprocess.Popen[bytes], url: str, args: argparse.Namespace) -> int:
    """Waits for the server, lets the clients ask, prints what came."""
    wait(url)
    load = Load(url, args.seconds, args.new_tokens)
    threads = [threading.Thread(target=load.client) for _ in range(args.clients)]
    for thread in threads:
        thread.start()
    memory = []
    while any(thread.is_alive() for thread in threads):
        memory.append(resident(server.pid))
        time.sleep(args.seconds / 60)
    fifth = max(1, len(memory) // 5)
    early, late = statistics.median(memory[fifth : 2 * fifth]), statistics.median(memory[-fifth:])
    times = sorted(load.latencies) or [0.0]
    print(f"statuses: {dict(load.statuses)}; {load.statuses[200] / args.seconds:.1f} answers a second")
    print(f"latency: median {statistics.median(times):.2f} s, 95 % below {times[int(len(times) * 0.95) - 1]:.2f} s")
    print(f"memory: {early:.0f} MB after a fifth, {late:.0f} MB in the last fifth ({late / early:.3f})")
    clean = set(load.statuses) <= {200, 429} and load.statuses[200] > 0
    return 0 if clean and late <= early * GROWTH else 1


def wait(url: str, seconds: float = 300) -> None:
    """Waits until the server is there."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


if __name__ == "__main__":
    sys.exit(main())
