"""Requests on their way through the engine."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from mg_llava.serving.generation.sampling import Sampling
from xtuner.errors import XTunerError

FINISHED: Any = None
"""The event after an answer's last token."""


class Overloaded(XTunerError):
    """Too many requests wait, or one waited too long; come back later.

    Args:
        message: for the client.
        waited: the request was taken and not begun in time (503), else it was refused at once (429).
    """

    def __init__(self, message: str, waited: bool = False) -> None:
        super().__init__(message)
        self.waited = waited


class Refused(XTunerError):
    """What works out the answers does not take this request; another one may be taken."""


@dataclass
class Ticket:
    """A request on its way.

    Attributes:
        prompt: what is asked, in the form of the engine.
        sampling: how it is answered.
        ids: the answer so far.
        deadline: by when (`time.monotonic`) its first token must be worked on.
        reason: why it ended: ``stop`` (by itself), ``length``, ``cancelled``, ``failed``.
    """

    prompt: Any
    sampling: Sampling
    deadline: float
    ids: list[int] = field(default_factory=list)
    reason: str = ""
    generator: torch.Generator | None = None
    _events: queue.SimpleQueue[Any] = field(default_factory=queue.SimpleQueue)
    _cancelled: threading.Event = field(default_factory=threading.Event)
    _endings: list[Callable[[], None]] = field(default_factory=list)

    def cancel(self) -> None:
        """The one who asked went away: its row is freed before the next token."""
        self._cancelled.set()
        for end in self._endings:
            end()

    def when_cancelled(self, end: Callable[[], None]) -> None:
        """Has `end` called, which may be more than once, as soon as the request is cancelled."""
        self._endings.append(end)
        if self.cancelled:
            end()

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled.is_set()

    def put(self, event: Any) -> None:
        """Hands a token's id or the end to whoever reads."""
        self._events.put(event)

    def fail(self, error: XTunerError) -> None:
        """Ends it with an error."""
        self.reason = "failed"
        self._events.put(error)

    def next_event(self, timeout: float | None = None) -> Any:
        """Returns the next token's id, None at the end.

        Raises:
            XTunerError: what went wrong.
            queue.Empty: nothing came in time.
        """
        event = self._events.get(timeout=timeout)
        if isinstance(event, BaseException):
            raise event
        return event

    def __iter__(self) -> Iterator[int]:
        while (event := self.next_event()) is not FINISHED:
            yield event


class Departed(Exception):
    """The client went away: nobody reads the answer."""


class ReadingError(XTunerError):
    """A request took too long to read: it is too large for this server."""


@dataclass
class Place:
    """A request's place among those that wait, from its arrival until the engine takes it.

    Attributes:
        deadline: by when (`time.monotonic`) its first token must be worked on.
        reads_until: by when it must be read; set when its reading begins.
        held: it counts among those that wait.
    """

    deadline: float
    reads_until: float = float("inf")
    held: bool = True
    _gone: threading.Event = field(default_factory=threading.Event)

    def leave(self) -> None:
        """The one who asked went away: the reading ends at its next `check`."""
        self._gone.set()

    def check(self) -> None:
        """Ends what nobody waits for any more; called between a request's pictures, and while it waits for something.

        Raises:
            Departed: the client went away.
            Overloaded: it waited too long.
            ReadingError: it takes too long to read.
        """
        now = time.monotonic()
        if self._gone.is_set():
            raise Departed
        if now > self.deadline:
            raise late()
        if now > self.reads_until:
            raise ReadingError("the request takes too long to read: send fewer or smaller pictures.")


def late() -> Overloaded:
    """Returns the error of a request that waited too long."""
    return Overloaded("the request waited too long: the server is overloaded, try again in a moment.", waited=True)
