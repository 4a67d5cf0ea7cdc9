"""A second signal ends a process at once, wherever it is."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
_SAME_SECONDS = 0.1
"""Signals that follow each other faster than a person presses a key count as one."""
_END = 0
"""No signal has this number."""

_active = False


@contextmanager
def second_signal_ends() -> Iterator[None]:
    """Lets the first stop signal do what its handler says, and ends the process at the second.

    Python's handlers wait until the main thread is back in Python, which a reduction that waits for another rank or a
    write to a disk that hangs keeps from it. So a thread counts the signals as the system tells of them. Nested, the
    outermost counts; outside the main thread, which alone gets signals, nothing changes.
    """
    global _active
    if _active or threading.current_thread() is not threading.main_thread():
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    former = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    # a child's signals are its own
    os.register_at_fork(after_in_child=_forget)
    thread = threading.Thread(target=_count, args=(reading,), name="signals", daemon=True)
    thread.start()
    _active = True
    try:
        yield
    finally:
        _active = False
        signal.set_wakeup_fd(former)
        # not by closing: children that were forked in between hold the pipe too
        os.write(writing, bytes([_END]))
        thread.join()
        os.close(writing)
        os.close(reading)


def _forget() -> None:
    if _active:
        signal.set_wakeup_fd(-1)


def _count(reading: int) -> None:
    first: float | None = None
    while True:
        for number in os.read(reading, 64):
            if number == _END:
                return
            if number not in STOP_SIGNALS:
                continue
            now = time.monotonic()
            first = now if first is None else first
            if now - first > _SAME_SECONDS:
                os.write(2, f"\n{signal.Signals(number).name} again: ending at once, without saving.\n".encode())
                os._exit(128 + number)
