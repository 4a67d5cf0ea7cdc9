"""The fields that all of the page's buttons read, and errors of ours as messages on the page."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from mg_llava.serving.page.actions import Given
from xtuner.errors import XTunerError


@dataclass(frozen=True)
class Fields:
    """Gradio's components in which stands what is `Given`, in the same order."""

    picture: Any
    typed: Any
    use_boxes: Any
    temperature: Any
    max_tokens: Any
    video: Any

    @property
    def all(self) -> list[Any]:
        """The components, as the first inputs of a function that `shown` or `streamed` wraps."""
        return [self.picture, self.typed, self.use_boxes, self.temperature, self.max_tokens, self.video]


_COUNT = len(Given.__dataclass_fields__)


def shown(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a function of `Given` and further values for Gradio, which hands over single values."""

    def call(*values: Any) -> Any:
        with errors_on_the_page():
            return function(Given(*values[:_COUNT]), *values[_COUNT:])

    return call


def streamed(function: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """`shown`, of a function that yields."""

    def call(*values: Any) -> Iterator[Any]:
        with errors_on_the_page():
            yield from function(Given(*values[:_COUNT]), *values[_COUNT:])

    return call


def with_event(function: Callable[..., Any], kind: type) -> Callable[..., Any]:
    """Tells Gradio, which goes by annotations, that the first argument ``event`` is of one of its kinds of event."""
    function.__annotations__ = {"event": kind}
    return function


@contextmanager
def errors_on_the_page() -> Iterator[None]:
    """Turns our errors into a message on the page."""
    import gradio

    try:
        yield
    except (XTunerError, OSError) as error:
        # shown as HTML, and it may quote what a visitor's file holds
        raise gradio.Error(html.escape(str(error), quote=False), duration=None) from error
