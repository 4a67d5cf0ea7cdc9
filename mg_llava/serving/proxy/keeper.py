"""Runs a program that must not outlive its starter: ``python keeper.py PROGRAM WORDS…``, whose standard input is a pipe
that the starter holds open. Where that closes, because the starter ended in whatever way, the program's group is ended.

A file of the standard library alone, so that it is small beside what it keeps.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence

_END_SECONDS = 20.0


def keep(command: Sequence[str]) -> int:
    """Runs a command in this process's group until it ends; returns its exit code, negative for a signal."""
    # a handler, not "ignore", which the program would inherit: what is sent to the group is for the program
    signal.signal(signal.SIGTERM, lambda *_: None)
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    threading.Thread(target=_end_with_starter, daemon=True).start()
    return process.wait()


def _end_with_starter() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    # the main thread goes on waiting, and ends this process where that is enough
    os.killpg(0, signal.SIGTERM)
    threading.Event().wait(_END_SECONDS)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    code = keep(sys.argv[1:])
    if code < 0:
        # as the program ended, so does this
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)
