"""A vLLM server as a child process: its log is passed on, and its end is told in one sentence."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from mg_llava.serving.proxy import keeper
from mg_llava.serving.proxy.upstream import KEY_VARIABLE, Gone, Upstream
from xtuner.errors import XTunerError
from xtuner.log import get_logger

PROGRAM = ("-m", "vllm.entrypoints.openai.api_server")
"""What `vllm serve` runs; that program itself is absent from some of vLLM's packages."""
_LOOK_SECONDS = 0.5
_END_SECONDS = 20.0
_DRAIN_SECONDS = 5.0
_KEPT_LINES = 200
_FAULT = re.compile(r"(?:Value error, |\b\w*(?:Error|Exception): |\berror: )(.+)")
_SAYS_NOTHING = ("Engine core initialization failed", "WorkerProc initialization failed", "validation error")
_NEXT_SENTENCE = re.compile(r"\. (?=[A-Z])|\.? \[type=")
_LONGEST = 300
_ADVICE = {
    "--gpu-memory-utilization SHARE' takes less memory": re.compile(r"memory utilization"),
    "--max-model-len N' makes the context smaller": re.compile(
        r"memory|max_model_len|max_seq_len|max seq len|KV cache", re.IGNORECASE
    ),
}
"""The first whose words stand in the fault."""


class Child:
    """Starts vLLM on a free port of this machine; nobody else's requests reach it, since its key is its parent's.

    Args:
        folder: exported.
        name: how the model is called.
        options: further ones of vLLM.

    Attributes:
        upstream: the way to it.
        ended: why it ended by itself; "" = it runs, or was stopped.
    """

    def __init__(self, folder: Path, name: str, options: Sequence[str] = ()) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        key = secrets.token_hex(32)
        self.folder = folder
        self.upstream = Upstream(f"http://127.0.0.1:{port}", key)
        self.ended = ""
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._stopping = threading.Event()
        self._over = threading.Event()
        self._when_ended: Callable[[], None] = lambda: None
        command = [sys.executable, *PROGRAM, "--model", str(folder), "--served-model-name", name]
        command += ["--host", "127.0.0.1", "--port", str(port), "--uvicorn-log-level", "warning", *options]
        get_logger().info("starting vLLM: %s", " ".join(command))
        # a group of its own: an interrupt at the terminal is for the parent, and its own children end with it
        self._process = subprocess.Popen(
            [sys.executable, "-I", keeper.__file__, *command],
            # it ends when this pipe does
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            env={**os.environ, KEY_VARIABLE: key},
        )
        self._log = threading.Thread(target=self._pass_on, name="mg-llava-vllm-log", daemon=True)
        self._log.start()
        threading.Thread(target=self._watch, name="mg-llava-vllm-watch", daemon=True).start()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def wait_until_ready(self) -> None:
        """Returns when it answers, however long its model takes to load.

        Raises:
            XTunerError: it ended first.
        """
        while not self._over.wait(_LOOK_SECONDS):
            try:
                self.upstream.get("/health")
                return
            except Gone:
                continue
        self.check()

    def check(self) -> None:
        """Says why it ended.

        Raises:
            XTunerError: it did.
        """
        if self.ended:
            raise XTunerError(self.ended)

    def last_words(self) -> str:
        """Returns why it ended, after a moment for it to do so; "" if it goes on."""
        self._over.wait(_DRAIN_SECONDS)
        return self.ended

    def when_ended(self, call: Callable[[], None]) -> None:
        """Has `call` called where it ends by itself."""
        self._when_ended = call
        if self.ended:
            call()

    def stop(self) -> None:
        """Ends it and its children."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        for number, seconds in ((signal.SIGTERM, _END_SECONDS), (signal.SIGKILL, None)):
            self._send(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)

    def _send(self, number: signal.Signals) -> None:
        """To its group, which may outlive it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _pass_on(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if text := line.rstrip():
                self._lines.append(text)
                get_logger().info("vLLM: %s", text)

    def _watch(self) -> None:
        code = self._process.wait()
        # its children may still hold the pipe
        self._log.join(_DRAIN_SECONDS)
        if not self._stopping.is_set():
            self._send(signal.SIGKILL)
            self.ended = f"vLLM, which served '{self.folder}', {_how(code)}{_why(list(self._lines))}."
            get_logger().error("%s", self.ended)
        self._over.set()
        if self.ended:
            self._when_ended()


def _how(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    return f"was ended by {signal.Signals(-code).name}"


def _why(lines: Sequence[str]) -> str:
    """The last fault in a log that says something, with what can be done about it."""
    for line in reversed(lines):
        found = _FAULT.search(line)
        if found and not any(words in line for words in _SAYS_NOTHING):
            # one sentence of it; the log above has the rest
            fault = _NEXT_SENTENCE.split(found.group(1).strip())[0].rstrip(".")[:_LONGEST]
            advice = next((f"; --backend-args '{how}" for how, words in _ADVICE.items() if words.search(fault)), "")
            return f": {fault}{advice}"
    return "; its last lines in the log above say more" if lines else ""
