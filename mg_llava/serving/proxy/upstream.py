"""The way to a vLLM server: its JSON, and answers as they come."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

from mg_llava.serving.generation.tickets import Overloaded, Refused
from xtuner.errors import XTunerError

KEY_VARIABLE = "VLLM_API_KEY"
"""The environment variable that vLLM itself reads its key from."""
_CONNECT_SECONDS = 10.0
_SILENT_SECONDS = 600.0
"""A server that sends nothing for so long in the middle of an answer is taken for dead."""
_CHAT = "/v1/chat/completions"
_OK, _BAD_REQUEST, _NO_KEY, _FORBIDDEN, _BUSY, _FAULT = 200, 400, 401, 403, 429, 500
_SHOWN = 600


class Gone(XTunerError):
    """The server does not answer, or its connection broke."""


class Upstream:
    """A server of OpenAI's protocol.

    Args:
        url: ``http(s)://HOST:PORT``, with or without ``/v1``.
        key: that it wants; None = none.

    Raises:
        XTunerError: no such address, or no key.
    """

    def __init__(self, url: str, key: str | None = None) -> None:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
            raise XTunerError(f"the address {ascii(url[:100])} is none of a server: expected http://HOST:PORT.")
        self.url = url.rstrip("/").removesuffix("/v1")
        self._secure = parts.scheme == "https"
        self._host, self._port = parts.hostname, port
        self._path = urlsplit(self.url).path
        if key and not (key.isascii() and key.isprintable()):
            raise XTunerError(
                f"the environment variable {KEY_VARIABLE} holds a line break, or a character that no header can: set "
                "it to the key alone."
            )
        self._headers = {"Content-Type": "application/json"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"

    def get(self, path: str, timeout: float = _CONNECT_SECONDS) -> bytes:
        """Returns what a path of the server holds.

        Raises:
            XTunerError: see `post`.
        """
        with self._answered("GET", path, None, timeout) as response:
            return response.read()

    def post(self, body: Any) -> Any:
        """Returns the whole answer to a chat completion.

        Raises:
            Gone: the server does not answer.
            Refused: it does not take this request.
            Overloaded: it has too many.
            XTunerError: it failed.
        """
        with self._answered("POST", _CHAT, body, _SILENT_SECONDS) as response:
            return self._read_json(response.read())

    def stream(self, body: Any, when_cancelled: Callable[[Callable[[], None]], None]) -> Iterator[dict[str, Any]]:
        """Yields the events of a streamed chat completion.

        Args:
            body: of the request.
            when_cancelled: gets what breaks the connection off, which any thread may call at any time.

        Raises:
            XTunerError: see `post`.
        """
        with self._answered("POST", _CHAT, body, _SILENT_SECONDS, when_cancelled) as response:
            for line in response:
                if not line.startswith(b"data:"):
                    continue
                data = line[len(b"data:") :].strip()
                if data == b"[DONE]":
                    return
                event = self._read_json(data)
                if "error" in event:
                    raise _failure(_FAULT, event)
                yield event
        raise Gone(f"the answer of vLLM at {self.url} broke off in the middle: ask again.")

    def _read_json(self, content: bytes) -> Any:
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise XTunerError(
                f"what {self.url} answers is no JSON ({content[:60]!r}): expected a vLLM server."
            ) from error

    @contextlib.contextmanager
    def _answered(
        self,
        method: str,
        path: str,
        body: Any,
        timeout: float,
        when_cancelled: Callable[[Callable[[], None]], None] = lambda _: None,
    ) -> Iterator[http.client.HTTPResponse]:
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=_CONNECT_SECONDS)
        try:
            connection.connect()
            opened = connection.sock
            opened.settimeout(timeout)
            when_cancelled(lambda: _break_off(opened))
            data = None if body is None else json.dumps(body).encode()
            connection.request(method, self._path + path, data, self._headers)
            response = connection.getresponse()
            if response.status != _OK:
                raise self._refusal(response.status, response.read())
            yield response
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise Gone(f"vLLM at {self.url} does not answer ({reason}): see whether it runs.") from error
        finally:
            connection.close()

    def _refusal(self, status: int, content: bytes) -> XTunerError:
        if status in (_NO_KEY, _FORBIDDEN):
            return XTunerError(
                f"vLLM at {self.url} wants another API key: put it into the environment variable {KEY_VARIABLE}."
            )
        try:
            return _failure(status, json.loads(content))
        except (ValueError, RecursionError):
            return XTunerError(f"{self.url} answers {status} ({content[:60]!r}): expected a vLLM server.")


def _failure(status: int, answer: Any) -> XTunerError:
    fault = answer.get("error", answer) if isinstance(answer, dict) else answer
    said = str(fault.get("message", fault) if isinstance(fault, dict) else fault)
    message = f"vLLM: {said[:_SHOWN]}"
    if status == _BUSY:
        return Overloaded(message)
    code = fault.get("code") if isinstance(fault, dict) else None
    # in the middle of a stream the status of what went wrong is in the event
    status = code if status == _FAULT and isinstance(code, int) else status
    return Refused(message) if _BAD_REQUEST <= status < _FAULT else XTunerError(message)


def _break_off(opened: socket.socket) -> None:
    # it may be closed already
    with contextlib.suppress(OSError):
        opened.shutdown(socket.SHUT_RDWR)
