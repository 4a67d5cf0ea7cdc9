"""How much a request may hold."""

from __future__ import annotations

import contextlib

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mg_llava.serving.requests.errors import error_response

_DROPPED = 4
"""A body that is refused is read to its end, but for no more than so many times the limit."""


class UploadLimit:
    """Refuses bodies of more than `max_bytes`, also those that do not say how long they are.

    Args:
        app: what stands behind.
        max_bytes: of a body.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or answers 413."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        lengths = [value for name, value in scope["headers"] if name == b"content-length"]
        if lengths and lengths[0].isdigit() and int(lengths[0]) > self.max_bytes:
            await self._refuse(scope, receive, send)
            return
        read = 0
        refused = False

        async def counted() -> Message:
            nonlocal read, refused
            message = await receive()
            read += len(message.get("body", b""))
            if read > self.max_bytes and not refused:
                refused = True
                raise _TooLargeError
            return message

        with contextlib.suppress(_TooLargeError):
            await self.app(scope, counted, send)
        if refused:
            await self._refuse(scope, receive, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        # a client that is still sending when the connection closes sees a reset instead of the answer
        left = _DROPPED * self.max_bytes
        while left > 0:
            message = await receive()
            left -= len(message.get("body", b""))
            if not message.get("more_body", False):
                break
        text = f"the request is larger than {self.max_bytes / 1e6:.0f} MB: send a smaller picture."
        await error_response(text, 413, Connection="close")(scope, receive, send)


class _TooLargeError(Exception):
    """A body passed the limit while it was read."""
