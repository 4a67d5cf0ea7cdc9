"""Answers to many requests at once: rows of one batch that join and leave it between two tokens."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch

from mg_llava.inference.assistant import Assistant, collate_prompts
from mg_llava.inference.prompts import Prompt
from mg_llava.serving.generation.batch import RowBatch
from mg_llava.serving.generation.sampling import Draw, Sampling
from mg_llava.serving.generation.tickets import FINISHED, Overloaded, Place, Ticket, late
from xtuner.errors import XTunerError
from xtuner.log import get_logger


class Engine:
    """Runs the model in one thread and answers tickets together.

    Args:
        assistant: its model, tokenizer and template.
        max_batch: rows at most.
        max_queue: requests that may wait besides.
        max_wait: seconds from a request's arrival at most until its first token is worked on, reading included.
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
        place = Place(time.monotonic() + self.max_wait)
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
            XTunerError: the prompt does not fit the model's context, or the seed no generator.
        """
        room = self.assistant.room(prompt)
        sampling = replace(sampling, max_new_tokens=min(sampling.max_new_tokens, room))
        ticket = Ticket(prompt, sampling, time.monotonic() + self.max_wait if place is None else place.deadline)
        ticket.generator = sampling.generator(self.assistant.model.data_preprocessor.device)
        with self._work:
            if self._stopped:
                raise Overloaded("the server is stopping", waited=True)
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
            # what `_turn` could not put down to one row: those concerned are told, and the server goes on
            except Exception as error:
                get_logger().exception("a batch failed")
                self._fail([*self._running, *joining], _failed(error))
        self._fail([*self._running, *self._waiting], Overloaded("the server is stopping", waited=True))

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
        self._joining = [self._waiting.popleft() for _ in range(min(room, len(self._waiting)))]
        return self._joining

    def _turn(self, joining: list[Ticket]) -> None:
        """One token for every row; those that join read their prompt for it. What fails for one row ends it alone."""
        if self._running:
            self._step()
        if joining:
            self._join(joining)
        if not self._running:
            return
        draws = [Draw(ticket.sampling, ticket.generator, ticket.ids) for ticket in self._running]
        stops = self.assistant.stop_ids()
        for ticket, token in zip(self._running, self._rows.sample(draws), strict=True):
            self._take(ticket, token, stops)
        self._keep([row for row, ticket in enumerate(self._running) if not ticket.reason])

    def _step(self) -> None:
        """Reads each row's last token; a row for which that fails is dropped."""
        while self._running:
            try:
                self._rows.step([ticket.ids[-1] for ticket in self._running])
                return
            except torch.OutOfMemoryError as error:
                get_logger().warning("out of memory with %d rows: the last one is dropped", len(self._running))
                self._running[-1].fail(_failed(error))
                self._keep(range(len(self._running) - 1))
            except Exception:
                get_logger().exception("a batch failed: its rows go on alone, those that fail again are dropped")
                self._step_alone()
                return

    def _step_alone(self) -> None:
        rows, kept = RowBatch(self.assistant.model), []
        for number, ticket in enumerate(self._running):
            try:
                alone = self._rows.take([number])
                alone.step([ticket.ids[-1]])
                rows.append(alone)
            except Exception as error:
                ticket.fail(_failed(error))
            else:
                kept.append(ticket)
        self._rows = rows
        with self._lock:
            self._running = kept

    def _join(self, joining: list[Ticket]) -> None:
        """Reads the prompts of new rows, one by one where they fail together."""
        try:
            self._read(joining)
        except Exception as error:
            get_logger().exception("%d requests could not be read by the model", len(joining))
            if len(joining) == 1:
                joining[0].fail(_failed(error))
            else:
                for ticket in joining:
                    self._join([ticket])
        with self._lock:
            self._joining = []

    def _read(self, joining: list[Ticket]) -> None:
        self._rows.join(collate_prompts([ticket.prompt for ticket in joining], self.assistant.tokenizer.pad_token_id))
        with self._lock:
            self._running += joining

    def _keep(self, rows: Sequence[int]) -> None:
        """Frees all rows but `rows`."""
        if len(rows) == len(self._running):
            return
        self._rows.keep(rows)
        with self._lock:
            self._running = [self._running[row] for row in rows]

    def _take(self, ticket: Ticket, token: int | None, stops: list[int]) -> None:
        if ticket.cancelled:
            ticket.reason = "cancelled"
        elif token is None:
            ticket.fail(XTunerError("the model's numbers for this request are not finite: ask otherwise."))
            return
        elif token in stops:
            ticket.reason = "stop"
        else:
            ticket.ids.append(token)
            ticket.put(token)
            if len(ticket.ids) >= ticket.sampling.max_new_tokens:
                ticket.reason = "length"
        if ticket.reason:
            ticket.put(FINISHED)

    def _fail(self, tickets: list[Ticket], error: XTunerError) -> None:
        for ticket in tickets:
            if not ticket.reason:
                ticket.fail(error)
        self._rows = RowBatch(self.assistant.model)
        with self._lock:
            self._running = []
            self._joining = []


def _failed(error: Exception) -> XTunerError:
    return XTunerError(f"the model failed: {error}")
