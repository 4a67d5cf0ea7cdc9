"""An answer for what nobody foresaw."""

from __future__ import annotations

import uuid

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mg_llava.serving.requests.errors import error_response
from xtuner.log import get_logger


class Unforeseen:
    """Answers any exception with 500, OpenAI-shaped, and an id that stands beside the traceback in the log.

    Args:
        app: what stands behind.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = False

        async def noted(message: Message) -> None:
            nonlocal began
            began = began or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, noted)
        except Exception:
            number = uuid.uuid4().hex[:12]
            get_logger().exception("request %s failed: %s %s", number, scope["method"], ascii(scope["path"][:200]))
            if began:
                # too late for an answer: the connection ends in the middle of it, which clients notice
                raise
            message = f"the server failed; its log has the reason under {number}."
            await error_response(message, 500, "internal_error", **{"X-Request-Id": number})(scope, receive, send)
