"""This project's own engine: rows of one batch that join and leave it between two tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mg_llava.inference.assistant import Assistant, collate_prompts
from mg_llava.inference.explain import explain_boxes
from mg_llava.inference.messages import Conversation
from mg_llava.inference.prompts import Prompt, PromptMaker
from mg_llava.serving.generation.batch import RowBatch
from mg_llava.serving.generation.engine import Engine, stopping
from mg_llava.serving.generation.sampling import Draw
from mg_llava.serving.generation.tickets import FINISHED, Ticket
from mg_llava.videos import VideoFrames
from xtuner.errors import XTunerError
from xtuner.log import get_logger


class BatchEngine(Engine):
    """Runs the model in one thread and answers tickets together.

    Args:
        assistant: its model, tokenizer and template.
        max_batch: rows at most.
        max_queue: requests that may wait besides.
        max_wait: seconds from a request's arrival at most until its first token is worked on, reading included.
    """

    def __init__(self, assistant: Assistant, max_batch: int = 8, max_queue: int = 32, max_wait: float = 30.0) -> None:
        super().__init__(max_batch, max_queue, max_wait)
        self.assistant = assistant
        self._rows = RowBatch(assistant.model)
        self._thread.start()

    @property
    def maker(self) -> PromptMaker:
        """The assistant's."""
        return self.assistant.maker

    def prepare(
        self,
        asked: Conversation,
        files: Sequence[bytes] = (),
        videos: Sequence[tuple[bytes, VideoFrames]] = (),
    ) -> Prompt:
        """Returns ids, pixels and boxes; the files themselves are not needed."""
        return self.assistant.prepare(asked.turns, asked.pictures, asked.found, asked.answer_start)

    def num_tokens(self, prompt: Prompt) -> int:
        """Returns how many tokens the language model reads."""
        vision = self.assistant.model.vision
        return prompt.num_tokens(vision.image_tokens, vision.with_objects)

    def room(self, prompt: Prompt) -> int:
        """See `Assistant.room`."""
        return self.assistant.room(prompt)

    def explain(self, prompt: Prompt, answer: str) -> list[float]:
        """See `explain_boxes`."""
        return explain_boxes(self.assistant, prompt, answer)

    def _accept(self, ticket: Ticket) -> None:
        ticket.generator = ticket.sampling.generator(self.assistant.model.data_preprocessor.device)

    def _loop(self) -> None:
        while True:
            with self._work:
                while not (self._stopped or self._waiting or self._running):
                    self._work.wait()
                if self._stopped:
                    break
                joining = self._joining = self._choose()
            try:
                with torch.inference_mode():
                    self._turn(joining)
            # what `_turn` could not put down to one row: those concerned are told, and the server goes on
            except Exception as error:
                get_logger().exception("a batch failed")
                self._fail([*self._running, *joining], _failed(error))
        self._fail([*self._running, *self._waiting], stopping())

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
