"""The engine whose answers a vLLM server works out."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mg_llava.inference.messages import Conversation
from mg_llava.inference.prompts import PromptMaker
from mg_llava.serving.generation.engine import Engine, stopping
from mg_llava.serving.generation.tickets import FINISHED, Ticket
from mg_llava.serving.proxy.child import Child
from mg_llava.serving.proxy.prompts import PromptSender, SentPrompt
from mg_llava.serving.proxy.upstream import Gone, Upstream
from mg_llava.videos import VideoFrames
from xtuner.errors import XTunerError
from xtuner.log import get_logger

_LOOK_SECONDS = 0.2
"""How often waiting requests are looked at for those that waited too long."""
_HEALTH_SECONDS = 2.0
_LEAST_SHARE = 1e-6
"""vLLM takes no top_p of 0, which leaves the likeliest token alone."""


class ProxyEngine(Engine):
    """Hands requests on to vLLM, each in a thread of its own, and its tokens to whoever reads.

    Args:
        sender: makes what is sent.
        upstream: the server.
        model: how that calls the model.
        context: most tokens of prompt and answer there.
        child: the server's process, where it was started here.
        max_batch, max_queue, max_wait: see `Engine`.
    """

    unexplained = (
        "which regions mattered is measured inside the model, and here vLLM answers: serve with --backend own for that."
    )

    def __init__(
        self,
        sender: PromptSender,
        upstream: Upstream,
        model: str,
        context: int,
        child: Child | None = None,
        max_batch: int = 64,
        max_queue: int = 32,
        max_wait: float = 30.0,
    ) -> None:
        super().__init__(max_batch, max_queue, max_wait)
        self.sender = sender
        self.upstream = upstream
        self.model = model
        self.context = context
        self.child = child
        self._pool = ThreadPoolExecutor(max_batch, thread_name_prefix="mg-llava-vllm")
        self._thread.start()

    @property
    def maker(self) -> PromptMaker:
        """Of the folder."""
        return self.sender.maker

    @property
    def healthy(self) -> bool:
        """Whether vLLM says that it can answer."""
        if not super().healthy or (self.child is not None and self.child.ended):
            return False
        try:
            self.upstream.get("/health", _HEALTH_SECONDS)
        except XTunerError:
            return False
        return True

    def prepare(
        self, asked: Conversation, files: Sequence[bytes], videos: Sequence[tuple[bytes, VideoFrames]] = ()
    ) -> SentPrompt:
        """See `PromptSender.prepare`."""
        return self.sender.prepare(asked, files, videos)

    def num_tokens(self, prompt: SentPrompt) -> int:
        """Returns how many tokens the language model reads."""
        return prompt.size.num_tokens(self.sender.processor.image_tokens)

    def room(self, prompt: SentPrompt) -> int:
        """See `Engine.room`; the context is that of the server."""
        return prompt.size.room_in(self.context, self.sender.processor.image_tokens)

    def explain(self, prompt: SentPrompt, answer: str) -> list[float]:
        """Refuses.

        Raises:
            XTunerError: always.
        """
        raise XTunerError(self.unexplained)

    def close(self) -> None:
        """Breaks off what is on its way, and ends the threads."""
        with self._lock:
            running = list(self._running)
        for ticket in running:
            ticket.fail(stopping())
            ticket.cancel()
        super().close()
        self._pool.shutdown()

    def _loop(self) -> None:
        while True:
            with self._work:
                while not (self._stopped or (chosen := self._choose())):
                    self._work.wait(_LOOK_SECONDS if self._waiting else None)
                if self._stopped:
                    break
                self._running += chosen
            for ticket in chosen:
                self._pool.submit(self._forward, ticket)
        with self._lock:
            left = list(self._waiting)
        for ticket in left:
            ticket.fail(stopping())

    def _forward(self, ticket: Ticket) -> None:
        try:
            for event in self.upstream.stream(self._body(ticket), ticket.when_cancelled):
                self._take(ticket, event)
            if not ticket.reason:
                raise Gone("vLLM's answer has no end: ask again.")
        except Exception as error:
            self._end(ticket, error)
        finally:
            with self._work:
                self._running.remove(ticket)
                self._work.notify()

    def _end(self, ticket: Ticket, error: Exception) -> None:
        """A request whose connection broke, by its client or by itself."""
        if ticket.reason:
            return
        if ticket.cancelled:
            ticket.reason = "cancelled"
            ticket.put(FINISHED)
            return
        if not isinstance(error, XTunerError):
            get_logger().exception("a request to vLLM failed")
            error = XTunerError(f"the request to vLLM failed: {error}")
        if isinstance(error, Gone) and self.child is not None and (ending := self.child.last_words()):
            error = XTunerError(f"{ending} The request was not answered.")
        ticket.fail(error)

    def _take(self, ticket: Ticket, event: dict[str, Any]) -> None:
        choices = event.get("choices") or []
        if not choices or ticket.reason:
            return
        (choice,) = choices
        reason = choice.get("finish_reason")
        ids = choice.get("token_ids")
        if ids is None and (reason or choice.get("delta", {}).get("content")):
            raise XTunerError(f"{self.upstream.url} sends no token_ids: expected a vLLM server of a known version.")
        ids = list(ids or ())
        if reason == "stop" and not isinstance(choice.get("stop_reason"), str):
            # the token that ended it; after a stop text there is none
            ids = ids[:-1]
        for token in ids:
            ticket.ids.append(token)
            ticket.put(token)
        if reason in ("stop", "length"):
            ticket.reason = reason
            ticket.put(FINISHED)
        elif reason:
            raise XTunerError(f"vLLM ended the answer with {reason!r}: ask again.")

    def _body(self, ticket: Ticket) -> dict[str, Any]:
        prompt, sampling = ticket.prompt, ticket.sampling
        return {
            "model": self.model,
            "messages": prompt.messages,
            "add_generation_prompt": not prompt.continues,
            "continue_final_message": prompt.continues,
            "stream": True,
            "return_token_ids": True,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": max(sampling.top_p, _LEAST_SHARE),
            "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty,
            "stop": list(sampling.stop),
            "seed": sampling.seed,
        }
