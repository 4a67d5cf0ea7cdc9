"""Answers to many requests at once: rows of one batch that join and leave it between two tokens."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from mg_llava.inference.assistant import Assistant, collate_prompts
from mg_llava.inference.prompts import Prompt
from mg_llava.serving.batch import RowBatch
from mg_llava.serving.sampling import Sampling
from xtuner.errors import XTunerError
from xtuner.log import get_logger

_FINISHED: Any = None


class Overloaded(XTunerError):
    """Too many requests wait, or one waited too long; come back later.

    Args:
        message: for the client.
        waited: the request was taken and not begun in time (503), else it was refused at once (429).
    """

    def __init__(self, message: str, waited: bool = False) -> None:
        super().__init__(message)
        self.waited = waited


@dataclass
class Ticket:
    """A request on its way.

    Attributes:
        prompt: what is asked.
        sampling: how it is answered.
        ids: the answer so far.
        reason: why it ended: ``stop`` (by itself), ``length``, ``cancelled``.
    """

    prompt: Prompt
    sampling: Sampling
    ids: list[int] = field(default_factory=list)
    reason: str = ""
    taken_at: float = field(default_factory=time.monotonic)
    generator: torch.Generator | None = None
    _events: queue.SimpleQueue[Any] = field(default_factory=queue.SimpleQueue)
    _cancelled: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        """The one who asked went away: its row is freed before the next token."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled.is_set()

    def put(self, event: Any) -> None:
        """Hands a token's id, an error or the end to whoever reads."""
        self._events.put(event)

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
        while (event := self.next_event()) is not _FINISHED:
            yield event


@dataclass
class Place:
    """A request's place among those that wait, from before its pictures are read.

    Attributes:
        waited: seconds until its pictures' turn came; what the reading itself takes is no waiting.
    """

    waited: float = 0.0
    taken_at: float = field(default_factory=time.monotonic)
    held: bool = True


class Engine:
    """Runs the model in one thread and answers tickets together.

    Args:
        assistant: its model, tokenizer and template.
        max_batch: rows at most.
        max_queue: requests that may wait besides.
        max_wait: seconds that a request waits at most before its first token is worked on.
    """

    def __init__(self, assistant: Assistant, max_batch: int = 8, max_queue: int = 32, max_wait: float = 30.0) -> None:
        self.assistant = assistant
        self.max_batch = max_batch
        self.max_queue = max_queue
        self.max_wait = max_wait
        self._waiting: deque[Ticket] = deque()
        self._rows = RowBatch(assistant.model)
        self._running: list[Ticket] = []
        self._joining: list[Ticket] = []
        self._preparing = 0
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._stopped = False
        self._thread = threading.Thread(target=self._loop, name="mg-llava-engine", daemon=True)
        self._thread.start()

    @property
    def healthy(self) -> bool:
        """Whether it can answer."""
        return self._thread.is_alive() and not self._stopped

    def _is_full(self) -> bool:
        self._drop_cancelled()
        taken = self._preparing + len(self._waiting) + len(self._joining) + len(self._running)
        return taken >= self.max_queue + self.max_batch

    def _refuse_if_full(self) -> None:
        if self._is_full():
            count = self._preparing + len(self._waiting)
            raise Overloaded(f"{count} requests are already waiting, which is the limit: try again in a moment")

    @contextmanager
    def admit(self) -> Iterator[Place]:
        """Holds a place for a request while its pictures are read and boxes are found, until `submit` takes it over.

        Raises:
            Overloaded: the queue is full.
        """
        place = Place()
        with self._lock:
            self._refuse_if_full()
            self._preparing += 1
        try:
            yield place
        finally:
            with self._lock:
                self._release(place)

    def _release(self, place: Place) -> None:
        self._preparing -= place.held
        place.held = False

    def begin(self, place: Place) -> None:
        """Notes that the reading of a request's pictures begins.

        Raises:
            Overloaded: it waited too long for that.
        """
        place.waited = time.monotonic() - place.taken_at
        if place.waited > self.max_wait:
            raise self._late()

    def load(self) -> dict[str, int]:
        """Returns how many requests run and wait, and how many may."""
        with self._lock:
            return {
                "running": len(self._running),
                "waiting": self._preparing + len(self._waiting),
                "max_batch": self.max_batch,
                "max_queue": self.max_queue,
            }

    def submit(self, prompt: Prompt, sampling: Sampling, place: Place | None = None) -> Ticket:
        """Takes a request.

        Args:
            prompt: what is asked.
            sampling: how it is answered.
            place: of `admit`; None = one is taken now.

        Raises:
            Overloaded: the queue is full.
            XTunerError: the prompt does not fit the model's context.
        """
        room = self.assistant.room(prompt)
        ticket = Ticket(prompt, sampling if sampling.max_new_tokens <= room else _cut(sampling, room))
        if sampling.seed is not None:
            ticket.generator = torch.Generator(device=self.assistant.model.data_preprocessor.device)
            ticket.generator.manual_seed(sampling.seed)
        with self._work:
            if self._stopped:
                raise Overloaded("the server is stopping", waited=True)
            if place is None:
                self._refuse_if_full()
            else:
                self._release(place)
                ticket.taken_at -= place.waited
            self._waiting.append(ticket)
            self._work.notify()
        return ticket

    def close(self) -> None:
        """Ends the thread; requests on their way get an error."""
        with self._work:
            self._stopped = True
            self._work.notify()
        self._thread.join(timeout=30)

    def _drop_cancelled(self) -> None:
        self._waiting = deque(ticket for ticket in self._waiting if not ticket.cancelled)

    def _loop(self) -> None:
        while True:
            with self._work:
                while not (self._stopped or self._waiting or self._running):
                    self._work.wait()
                if self._stopped:
                    break
                joining = self._choose()
            try:
                with torch.inference_mode():
                    self._turn(joining)
            # whatever a request brings the model to must not end the server: those concerned are told
            except Exception as error:
                get_logger().exception("a batch failed")
                self._fail([*self._running, *joining], XTunerError(f"the model failed: {error}"))
        self._fail([*self._running, *self._waiting], Overloaded("the server is stopping", waited=True))

    def _choose(self) -> list[Ticket]:
        """Takes waiting requests that there is room for; those that waited too long are refused."""
        self._drop_cancelled()
        now = time.monotonic()
        while self._waiting and now - self._waiting[0].taken_at > self.max_wait:
            late = self._waiting.popleft()
            late.put(self._late())
        room = self.max_batch - len(self._running)
        self._joining = [self._waiting.popleft() for _ in range(min(room, len(self._waiting)))]
        return self._joining

    def _late(self) -> Overloaded:
        return Overloaded(f"the request waited {self.max_wait:.0f} s or more: the server is overloaded", waited=True)

    def _turn(self, joining: list[Ticket]) -> None:
        """One token for every row; those that join read their prompt for it."""
        if self._running:
            self._rows.step([ticket.ids[-1] for ticket in self._running])
        if joining:
            self._rows.join(
                collate_prompts([ticket.prompt for ticket in joining], self.assistant.tokenizer.pad_token_id)
            )
            with self._lock:
                self._running += joining
                self._joining = []
        tokens = self._rows.sample([(ticket.sampling, ticket.generator) for ticket in self._running])
        stops = self.assistant.stop_ids()
        for ticket, token in zip(self._running, tokens, strict=True):
            self._take(ticket, token, stops)
        kept = [row for row, ticket in enumerate(self._running) if not ticket.reason]
        if len(kept) < len(self._running):
            self._rows.keep(kept)
            with self._lock:
                self._running = [self._running[row] for row in kept]

    def _take(self, ticket: Ticket, token: int, stops: list[int]) -> None:
        if ticket.cancelled:
            ticket.reason = "cancelled"
        elif token in stops:
            ticket.reason = "stop"
        else:
            ticket.ids.append(token)
            ticket.put(token)
            if len(ticket.ids) >= ticket.sampling.max_new_tokens:
                ticket.reason = "length"
        if ticket.reason:
            ticket.put(_FINISHED)

    def _fail(self, tickets: list[Ticket], error: XTunerError) -> None:
        for ticket in tickets:
            ticket.put(error)
        self._rows = RowBatch(self.assistant.model)
        with self._lock:
            self._running = []
            self._joining = []


def _cut(sampling: Sampling, room: int) -> Sampling:
    return Sampling(room, sampling.temperature, sampling.top_p, sampling.stop, sampling.seed)
