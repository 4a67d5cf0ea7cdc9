"""Limits of a server."""

from __future__ import annotations

from dataclasses import dataclass

from mg_llava.inference.chat import MAX_PIXELS


@dataclass(frozen=True)
class Limits:
    """What a server takes: a request has a budget, and what is beyond it is refused before it is worked on.

    Attributes:
        max_batch: answers that are made together.
        max_queue: requests that may wait; more are refused (429).
        max_wait: seconds from a request's arrival until its first token is worked on; later it is refused (503).
        max_receive: seconds in which a whole request must have come.
        max_read: seconds that one request's pictures and boxes may take.
        max_upload: bytes of a request.
        max_values: of a request's JSON, counted before it is parsed.
        max_text: characters of all texts of a request.
        max_stop: characters of a stop word.
        max_boxes: of all pictures of a request.
        max_pixels: of a picture.
        max_pictures: of a request.
        max_videos: of a request.
        max_frames: of a video; so many are shown, spread evenly.
        max_new_tokens: of an answer, whatever a request asks for.
        refuse_unknown: refuse fields that this server does not know; off = they are named in a header of the answer.
        allow_remote: fetch pictures from http(s) addresses; off, since it lets strangers make this machine call others.
        remote_hosts: the only names that pictures are fetched from; empty = every public one.
    """

    max_batch: int = 8
    max_queue: int = 32
    max_wait: float = 30.0
    max_receive: float = 60.0
    max_read: float = 20.0
    max_upload: int = 20_000_000
    max_values: int = 100_000
    max_text: int = 200_000
    max_stop: int = 256
    max_boxes: int = 1000
    max_pixels: int = MAX_PIXELS
    max_pictures: int = 8
    max_videos: int = 1
    max_frames: int = 8
    max_new_tokens: int = 1024
    refuse_unknown: bool = False
    allow_remote: bool = False
    remote_hosts: tuple[str, ...] = ()
