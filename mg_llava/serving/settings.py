"""Limits of a server."""

from __future__ import annotations

from dataclasses import dataclass

from mg_llava.inference.chat import MAX_PIXELS


@dataclass(frozen=True)
class Limits:
    """What a server takes.

    Attributes:
        max_batch: answers that are made together.
        max_queue: requests that may wait; more are refused (429).
        max_wait: seconds that one waits at most before it is refused (503).
        max_upload: bytes of a request.
        max_pixels: of a picture.
        max_pictures: of a request.
        max_new_tokens: of an answer, whatever a request asks for.
        allow_remote: fetch pictures from http(s) addresses; off, since it lets strangers make this machine call others.
    """

    max_batch: int = 8
    max_queue: int = 32
    max_wait: float = 30.0
    max_upload: int = 20_000_000
    max_pixels: int = MAX_PIXELS
    max_pictures: int = 8
    max_new_tokens: int = 1024
    allow_remote: bool = False
