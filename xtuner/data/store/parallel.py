"""One function over many batches, in this process or in several; the results in order either way."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from xtuner.errors import XTunerError

Item = TypeVar("Item")
Result = TypeVar("Result")

_BYTES_PER_PROCESS = 64 << 20


def processes_for(size: int, num_proc: int | None) -> int:
    """Returns how many processes a file of `size` bytes is worth; `num_proc` wins.

    Processes share the cores of a machine, not the ranks on it: the ranks wait for the one that prepares.
    """
    return num_proc or min(len(os.sched_getaffinity(0)), 1 + size // _BYTES_PER_PROCESS)


def map_batches(function: Callable[[Item], Result], batches: Iterable[Item], processes: int) -> Iterator[Result]:
    """Yields ``function(batch)`` for each batch, in order.

    Args:
        function: can be pickled where `processes` is more than 1; sent once to each.
        batches: read only as far as the processes need.
        processes: 1 = this one.

    Raises:
        XTunerError: a worker process was ended from outside.
    """
    if processes == 1:
        yield from map(function, batches)
        return
    # spawn: a tokenizer's own threads do not survive a fork
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(processes, context, _start_worker, (function,)) as pool:
            waiting: deque[Future[Any]] = deque()
            for batch in batches:
                waiting.append(pool.submit(_call, batch))
                # bounded: the parser is faster than the workers and would fill the memory
                if len(waiting) > 2 * processes:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise XTunerError(
            "a worker process that prepares data was killed, perhaps because memory ran out: start again "
            "with fewer processes (--num-proc); finished work is kept."
        ) from error


_function: list[Callable[[Any], Any]] = []
"""In a worker process: what is called for each batch."""


def _start_worker(function: Callable[[Any], Any]) -> None:
    _function.append(function)


def _call(batch: Any) -> Any:
    return _function[0](batch)
