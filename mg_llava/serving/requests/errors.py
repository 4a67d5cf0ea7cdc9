"""Errors as OpenAI's clients read them: one JSON object, whatever went wrong."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse

from mg_llava.serving.generation.tickets import Overloaded
from mg_llava.serving.requests.chat import UnknownModel
from xtuner.errors import XTunerError

_RETRY_SECONDS = "1"
_SERVER_FAULTS = 500


def error_body(message: str, kind: str, code: str | None = None) -> dict[str, Any]:
    """Returns the JSON of an error.

    Args:
        message: for the person.
        kind: ``invalid_request_error``, ``server_error``, …
        code: for programs.
    """
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def error_response(message: str, status: int, code: str | None = None, **headers: str) -> JSONResponse:
    """Returns an answer that is an error; its kind follows from the status."""
    kind = "invalid_request_error" if status < _SERVER_FAULTS else "server_error"
    return JSONResponse(error_body(message, kind, code), status, headers)


def refusal(error: XTunerError) -> JSONResponse:
    """Returns the answer to a request that was not taken."""
    if isinstance(error, Overloaded):
        status, kind = (503, "server_error") if error.waited else (429, "rate_limit_error")
        return JSONResponse(error_body(str(error), kind), status, {"Retry-After": _RETRY_SECONDS})
    if isinstance(error, UnknownModel):
        return error_response(str(error), 404, "model_not_found")
    return error_response(str(error), 400)
