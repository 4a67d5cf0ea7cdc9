"""What of Gradio's own routes visitors of the page may call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

from starlette.types import ASGIApp, Receive, Scope, Send

from mg_llava.serving.requests.errors import error_response

_PREFIX = "/gradio_api"
_CALLED = frozenset(
    {
        "api", "app_id", "call", "cancel", "config", "heartbeat", "info", "queue", "reset", "run", "startup-events",
        "theme.css", "token", "upload", "upload_progress", "user",
    }
)  # fmt: skip
"""What the page itself calls; Gradio also has routes that fetch from other servers, record runs or edit the page."""
_FILE = "file="


class PageRoutes:
    """Passes on what the page calls, and files of its own folders only; everything else of Gradio's is 404.

    Args:
        app: what stands behind.
        folders: that files are given out of.
    """

    def __init__(self, app: ASGIApp, folders: Sequence[str]) -> None:
        self.app = app
        self.folders = [Path(folder).resolve() for folder in folders]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or answers 404."""
        if scope["type"] == "http" and not self._may(scope["path"]):
            await error_response("there is no such page.", 404)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _may(self, path: str) -> bool:
        # "//gradio_api" and "/x/../gradio_api" are other paths to Gradio as well, so none of it
        if ".." in path.split("/"):
            return False
        if not path.startswith(_PREFIX):
            return True
        called = path.removeprefix(_PREFIX).lstrip("/")
        if called.startswith(_FILE):
            return self._is_own(called.removeprefix(_FILE))
        return called.split("/")[0] in _CALLED

    def _is_own(self, name: str) -> bool:
        try:
            file = Path(unquote(name)).resolve()
        # a null character, or a name too long for the file system
        except (OSError, ValueError):
            return False
        return any(file.is_relative_to(folder) for folder in self.folders)
