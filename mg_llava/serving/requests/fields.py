"""The fields of a chat-completion request: those of OpenAI's protocol that are honoured, and our own beside them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mg_llava.serving.generation.sampling import LARGEST_SEED, LEAST_SEED
from mg_llava.serving.requests.settings import Limits
from xtuner.constants import HOTTEST
from xtuner.errors import XTunerError

_MOST_STOPS = 4
_SHOWN = 60
_MOST_PROBLEMS = 8

UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": ([], ["text"]),
    "n": (1,),
    "prediction": (),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": (),
    "web_search_options": (),
}
"""Fields of OpenAI's that this server refuses, with the values that ask for nothing."""

NO_EFFECT = frozenset(
    {"metadata", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "user"}
)
"""Fields of OpenAI's that change no answer."""

Temperature = Annotated[float, Field(ge=0, le=HOTTEST, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=LEAST_SEED, le=LARGEST_SEED)]


class StreamOptions(BaseModel):
    """``stream_options``."""

    model_config = ConfigDict(strict=True, extra="allow")

    include_usage: bool | None = None


class ChatFields(BaseModel):
    """A request; null is the same as to leave a field out.

    ``detect_boxes`` (false keeps the server's detector from looking at pictures without boxes) and
    ``continue_final_message`` (the last message is the beginning of the answer) are ours.
    """

    model_config = ConfigDict(strict=True, extra="allow")

    messages: list[Any]
    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_completion_tokens: Count | None = None
    max_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: Seed | None = None
    stop: Any = None
    detect_boxes: bool | None = None
    continue_final_message: bool | None = None

    @property
    def unknown(self) -> tuple[str, ...]:
        """Names of fields that neither OpenAI's protocol nor this server has, and that say something."""
        extra = {name for name, value in (self.model_extra or {}).items() if value is not None}
        options = {} if self.stream_options is None else self.stream_options.model_extra or {}
        named = {f"stream_options.{name}" for name, value in options.items() if value not in (None, False)}
        return tuple(sorted((extra - UNSUPPORTED.keys() - NO_EFFECT) | named))

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end the answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


def read_fields(body: dict[str, Any], limits: Limits) -> ChatFields:
    """Returns the fields of a request.

    Raises:
        XTunerError: fields of another kind, out of range, or not supported; all of them at once.
    """
    problems = [
        f"'{name}' is {_shown(body[name])}, which this server does not support: leave it out."
        for name, harmless in UNSUPPORTED.items()
        if body.get(name) is not None and not _is_one_of(body[name], harmless)
    ]
    if (stop := body.get("stop")) is not None and not _is_stop(stop, limits.max_stop):
        problems.append(
            f"'stop' is {_shown(stop)}: expected a text or up to {_MOST_STOPS} of them, of 1 to {limits.max_stop} "
            "characters each."
        )
    try:
        fields = ChatFields.model_validate(body)
    except ValidationError as error:
        problems = [_sentence(fault) for fault in error.errors(include_url=False)] + problems
    else:
        if limits.refuse_unknown and fields.unknown:
            problems.append(f"this server does not know {', '.join(map(_shown, fields.unknown[:_MOST_PROBLEMS]))}.")
    if problems:
        more = f" ({len(problems) - _MOST_PROBLEMS} more)" if len(problems) > _MOST_PROBLEMS else ""
        raise XTunerError(" ".join(problems[:_MOST_PROBLEMS]) + more)
    return fields


def _is_one_of(value: Any, harmless: tuple[Any, ...]) -> bool:
    # by type as well: true is no 1
    return any(type(value) is type(other) and value == other for other in harmless)


def _is_stop(stop: Any, longest: int) -> bool:
    texts = [stop] if isinstance(stop, str) else stop
    if not isinstance(texts, list) or len(texts) > _MOST_STOPS:
        return False
    return all(isinstance(text, str) and 1 <= len(text) <= longest for text in texts)


def _sentence(fault: Any) -> str:
    name = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "missing":
        return f"'{name}' is missing: send it."
    return f"'{name}' is {_shown(fault['input'])}: {fault['msg'].replace('Input should', 'it should')}."


def _shown(value: Any) -> str:
    if isinstance(value, int) and value.bit_length() > 256:
        return f"a number of {value.bit_length()} bits"
    text = ascii(value) if not isinstance(value, (list, dict)) else f"{type(value).__name__} of {len(value)} entries"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
