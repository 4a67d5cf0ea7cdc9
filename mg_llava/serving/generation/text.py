"""Text of an answer while its tokens come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_INCOMPLETE = "�"
_WINDOW = 8
"""Tokens before the new ones that are decoded with them, since how a token reads can depend on those before it."""


class TextAssembler:
    """Turns ids into pieces of text as they come; nothing is handed out that a stop text could still take back.

    Args:
        tokenizer: the model's.
        stops: texts that end the answer.

    Attributes:
        text: handed out so far.
        stopped: a stop text came; what follows is ignored.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str] = ()) -> None:
        self.tokenizer = tokenizer
        self.stops = tuple(stop for stop in stops if stop)
        self.text = ""
        self.stopped = False
        self._ids: list[int] = []
        self._done = 0
        self._held = ""
        self._started = False

    def add(self, token: int) -> str:
        """Takes a token and returns the text that is certain now."""
        if self.stopped:
            return ""
        self._ids.append(token)
        start = max(0, self._done - _WINDOW)
        before = self._decode(self._ids[start : self._done])
        now = self._decode(self._ids[start:])
        if now.endswith(_INCOMPLETE):
            # the first bytes of a character
            return ""
        self._done = len(self._ids)
        return self._release(now[len(before) :], final=False)

    def finish(self) -> str:
        """Returns what was held back."""
        return "" if self.stopped else self._release("", final=True)

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def _release(self, piece: str, final: bool) -> str:
        held = self._held + piece
        if not self._started:
            # answers begin without the space that some tokenizers put before them
            held = held.lstrip()
            self._started = bool(held)
        ends = [place for stop in self.stops if (place := held.find(stop)) >= 0]
        if ends:
            held, self.stopped, final = held[: min(ends)], True, True
        keep = 0 if final else max((_overlap(held, stop) for stop in self.stops), default=0)
        certain = held[: len(held) - keep]
        self._held = held[len(held) - keep :]
        self.text += certain
        return certain


def _overlap(text: str, stop: str) -> int:
    """Returns how many last characters of `text` are the beginning of `stop`."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
