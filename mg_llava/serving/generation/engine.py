"""What stands behind the endpoint and the page, whatever works out the answers: places, a queue, tickets."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from mg_llava.inference.messages import Conversation
from mg_llava.inference.prompts import PromptMaker
from mg_llava.serving.generation.sampling import Sampling
from mg_llava.serving.generation.tickets import Overloaded, Place, Ticket, late
from mg_llava.videos import VideoFrames


class Engine(ABC):
    """Takes requests, lets them wait in a queue, and answers some of them at a time in a thread.

    Args:
        max_batch: requests that are answered together.
        max_queue: requests that may wait besides.
        max_wait: seconds from a request's arrival at most until its first token is worked on, reading included.

    Attributes:
        unexplained: why `explain` cannot be asked here; "" = it can.
        no_videos: why videos are not taken here; "" = they are.
    """

    unexplained = ""
    no_videos = ""

    def __init__(self, max_batch: int = 8, max_queue: int = 32, max_wait: float = 30.0) -> None:
        self.max_batch = max_batch
        self.max_queue = max_queue
        self.max_wait = max_wait
        self._waiting: deque[Ticket] = deque()
        self._running: list[Ticket] = []
        self._joining: list[Ticket] = []
        self._preparing = 0
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._stopped = False
        self._thread = threading.Thread(target=self._loop, name="mg-llava-engine", daemon=True)

    @property
    @abstractmethod
    def maker(self) -> PromptMaker:
        """The tokenizer, the template, and what opens pictures and chooses boxes."""

    @abstractmethod
    def prepare(
        self, asked: Conversation, files: Sequence[bytes], videos: Sequence[tuple[bytes, VideoFrames]] = ()
    ) -> Any:
        """Returns the prompt of a conversation, in the form that `submit` takes.

        Args:
            asked: what was said.
            files: of its pictures, in the same order.
            videos: files of its videos, in the same order, and the frames that are among the pictures of `asked`.

        Raises:
            XTunerError: it cannot be asked.
        """

    @abstractmethod
    def num_tokens(self, prompt: Any) -> int:
        """Returns how many tokens the language model reads."""

    @abstractmethod
    def room(self, prompt: Any) -> int:
        """Returns how many new tokens fit into the language model's context after `prompt`.

        Raises:
            XTunerError: none at all.
        """

    @abstractmethod
    def explain(self, prompt: Any, answer: str) -> list[float]:
        """Returns how much each box of the last picture spoke for an answer.

        Raises:
            XTunerError: nothing to explain, or `unexplained`.
        """

    @abstractmethod
    def _loop(self) -> None:
        """Works in the engine's thread until `close`."""

    def _accept(self, ticket: Ticket) -> None:  # noqa: B027
        """Completes a request before it waits; nothing unless an engine needs it."""

    @property
    def healthy(self) -> bool:
        """Whether it can answer."""
        return self._thread.is_alive() and not self._stopped

    @contextmanager
    def admit(self) -> Iterator[Place]:
        """Holds a place for a request while its pictures are read and boxes are found, until `submit` takes it over.

        Raises:
            Overloaded: the queue is full.
        """
        place = Place(time.monotonic() + self.max_wait)
        with self._lock:
            self._refuse_if_full()
            self._preparing += 1
        try:
            yield place
        finally:
            with self._lock:
                self._release(place)

    def load(self) -> dict[str, int]:
        """Returns how many requests run and wait, and how many may."""
        with self._lock:
            return {
                "running": len(self._running),
                "waiting": self._preparing + len(self._waiting),
                "max_batch": self.max_batch,
                "max_queue": self.max_queue,
            }

    def submit(self, prompt: Any, sampling: Sampling, place: Place | None = None) -> Ticket:
        """Takes a request.

        Args:
            prompt: of `prepare`.
            sampling: how it is answered.
            place: of `admit`; None = one is taken now.

        Raises:
            Overloaded: the queue is full.
            XTunerError: the prompt does not fit the model's context, or the seed no generator.
        """
        sampling = replace(sampling, max_new_tokens=min(sampling.max_new_tokens, self.room(prompt)))
        ticket = Ticket(prompt, sampling, time.monotonic() + self.max_wait if place is None else place.deadline)
        self._accept(ticket)
        with self._work:
            if self._stopped:
                raise stopping()
            if place is None:
                self._refuse_if_full()
            else:
                self._release(place)
            self._waiting.append(ticket)
            self._work.notify()
        return ticket

    def close(self) -> None:
        """Ends the thread; requests on their way get an error."""
        with self._work:
            self._stopped = True
            self._work.notify()
        self._thread.join(timeout=30)

    def _is_full(self) -> bool:
        self._drop_cancelled()
        taken = self._preparing + len(self._waiting) + len(self._joining) + len(self._running)
        return taken >= self.max_queue + self.max_batch

    def _refuse_if_full(self) -> None:
        if self._is_full():
            count = self._preparing + len(self._waiting)
            raise Overloaded(f"{count} requests are already waiting, which is the limit: try again in a moment")

    def _release(self, place: Place) -> None:
        self._preparing -= place.held
        place.held = False

    def _drop_cancelled(self) -> None:
        self._waiting = deque(ticket for ticket in self._waiting if not ticket.cancelled)

    def _choose(self) -> list[Ticket]:
        """Takes waiting requests that there is room for; those that waited too long are refused."""
        self._drop_cancelled()
        now = time.monotonic()
        # not only the first: the time counts from a request's arrival, and pictures of an earlier one may take longer
        for ticket in self._waiting:
            if now > ticket.deadline:
                ticket.fail(late())
        self._waiting = deque(ticket for ticket in self._waiting if not ticket.reason)
        room = self.max_batch - len(self._running)
        return [self._waiting.popleft() for _ in range(min(room, len(self._waiting)))]


def stopping() -> Overloaded:
    """Returns the error of requests that a server still has when it ends."""
    return Overloaded("the server is stopping", waited=True)
