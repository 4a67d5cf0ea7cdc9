"""Measuring a piece of work: its processor time, or in a process of its own time and memory beyond the imports."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Cost:
    """What a piece of work cost.

    Attributes:
        seconds: on the wall.
        cpu_seconds: of the processor.
        resident: bytes that the process has more in memory afterwards, pages of files, which are shared, included.
        private: those that it has for itself alone.
        result: what the work gave.
    """

    seconds: float
    cpu_seconds: float
    resident: int
    private: int
    result: Any

    def __str__(self) -> str:
        return (
            f"{self.seconds:.3f} s ({self.cpu_seconds:.3f} s of the processor), {self.resident / 1e6:.1f} MB more "
            f"resident, {self.private / 1e6:.1f} MB of it its own"
        )


def in_own_process(imports: Callable[[], None], work: Callable[..., Any], *arguments: Any) -> Cost:
    """Runs `imports`, then measures ``work(*arguments)``, which returns a result and what is to stay in memory."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(sender, imports, work, arguments))
    process.start()
    sender.close()
    try:
        cost: Cost = receiver.recv()
    except EOFError as error:
        raise SystemExit("the measured process failed; its message stands above") from error
    process.join()
    return cost


def seconds_of(action: Callable[[], Any]) -> tuple[float, Any]:
    """Runs `action` here; returns processor seconds and the result."""
    started = time.process_time()
    result = action()
    return time.process_time() - started, result


def _measure(sender: Any, imports: Callable[[], None], work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    imports()
    resident, private = _memory()
    started, cpu = time.perf_counter(), time.process_time()
    result, kept = work(*arguments)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
    resident_after, private_after = _memory()
    del kept
    sender.send(Cost(seconds, cpu_seconds, resident_after - resident, private_after - private, result))


def _memory() -> tuple[int, int]:
    """Resident and private bytes of this process."""
    lines = dict(line.split(":") for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    sizes = {name: int(value.split()[0]) * 1024 for name, value in lines.items()}
    return sizes["Rss"], sizes["Anonymous"]
