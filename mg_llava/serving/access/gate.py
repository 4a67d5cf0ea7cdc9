"""The gate before every route: by which name the server is called, from whose page, with which key."""

from __future__ import annotations

import secrets
from urllib.parse import unquote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mg_llava.serving.access.settings import Access
from mg_llava.serving.requests.errors import error_response

_SCHEME = "bearer "
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Content-Security-Policy": (
        # Gradio's page needs inline code and styles, and makes its pictures' addresses itself
        "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'none'; object-src 'none'; "
        "base-uri 'self'; form-action 'self'"
    ),
}
"""Of every answer."""


class Gate:
    """Refuses requests under another name (a page of somebody else's that has this machine's address: DNS rebinding),
    from another site's page, and to ``/v1`` without the key; puts security headers on every answer.

    Args:
        app: what stands behind.
        access: who may ask.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app = app
        self.access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or answers 400, 401 or 403."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if scope["type"] == "websocket":
            # nothing here speaks it
            await send({"type": "websocket.close", "code": 1008})
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer = MutableHeaders(scope=message)
                for name in [name for name in answer if name.lower().startswith("access-control-")]:
                    del answer[name]
                for name, value in HEADERS.items():
                    answer[name] = value
            await send(message)

        refused = self._refuse(headers, scope["path"])
        if refused is None:
            await self.app(scope, receive, guarded)
        else:
            await error_response(*refused)(scope, receive, guarded)

    def _refuse(self, headers: Headers, path: str) -> tuple[str, int, str] | None:
        hosts = headers.getlist("host")
        name = _host_name(f"//{hosts[0]}") if len(hosts) == 1 else None
        if not self.access.takes_host(name):
            shown = ascii(hosts[0][:60]) if hosts else "none"
            message = f"this server is not called {shown}: start it with --allowed-host NAME for each of its names."
            return message, 403, "host_not_allowed"
        if not all(self._is_own(origin, hosts) for origin in headers.getlist("origin")):
            message = "this server takes no calls from other sites' pages: use a program, or its own page."
            return message, 403, "origin_not_allowed"
        if self.access.api_key is not None and _is_endpoint(path) and not self._has_key(headers):
            return "the API key is missing or another: send it as 'Authorization: Bearer KEY'.", 401, "invalid_api_key"
        return None

    def _is_own(self, origin: str, hosts: list[str]) -> bool:
        try:
            parts = urlsplit(origin)
        except ValueError:
            return False
        if hosts and parts.netloc.lower() == hosts[0].lower():
            return True
        # behind a proxy that asks under another name than people do
        named = {host.lower() for host in self.access.hosts}
        return parts.hostname is not None and parts.hostname in named

    def _has_key(self, headers: Headers) -> bool:
        said = headers.getlist("authorization")
        if len(said) != 1 or not said[0].lower().startswith(_SCHEME):
            return False
        given = said[0][len(_SCHEME) :].strip()
        # in bytes, as they came: a comparison of texts takes ASCII only, and headers are read as latin-1
        return secrets.compare_digest(given.encode("latin-1"), str(self.access.api_key).encode())


def _is_endpoint(path: str) -> bool:
    return unquote(path).lstrip("/").lower().split("/")[0] == "v1"


def _host_name(address: str) -> str | None:
    try:
        parts = urlsplit(address)
        # `port` raises where it is no number
        return parts.hostname if parts.port is None or parts.port else None
    except ValueError:
        return None
