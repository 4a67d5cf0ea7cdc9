"""Light checks of values against annotations: only what can be said for sure is called a mistake."""

from __future__ import annotations

import collections.abc
import inspect
import os
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from xtuner.config.plain import UNUSABLE
from xtuner.config.references import has_reference
from xtuner.registry import is_node

_SEQUENCES = (collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)
_PATHS = (Path, os.PathLike)


def matches(value: Any, hint: Any) -> bool:
    """Returns False where the plain `value` cannot be what the annotation `hint` asks for, else True."""
    # nodes are built first, and mistakes of these two kinds are reported where they are made
    if hint is Any or value is UNUSABLE or is_node(value) or has_reference(value):
        return True
    origin = get_origin(hint) or hint
    if origin in (Union, types.UnionType):
        return any(matches(value, option) for option in get_args(hint))
    if origin is Literal:
        return value in get_args(hint)
    if hint is None or hint is type(None):
        return value is None
    if origin in (bool, int, float, str):
        return _matches_scalar(value, origin)
    if origin in _PATHS:
        return isinstance(value, str)
    if origin in (list, tuple, *_SEQUENCES):
        return _matches_sequence(value, origin, get_args(hint))
    if origin in (dict, collections.abc.Mapping, collections.abc.MutableMapping):
        return isinstance(value, dict)
    # any other class is built from something only its module knows; None is never one
    return value is not None or not inspect.isclass(origin)


def _matches_scalar(value: Any, kind: type) -> bool:
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def _matches_sequence(value: Any, origin: Any, arguments: tuple[Any, ...]) -> bool:
    if isinstance(value, str):
        return origin in _SEQUENCES and (not arguments or arguments[0] in (str, Any))
    # a list for a tuple and the other way round: [0.9, 0.95] and (0.9, 0.95) mean the same to a reader
    if not isinstance(value, (list, tuple)):
        return False
    if origin is tuple and arguments and Ellipsis not in arguments:
        return len(value) == len(arguments) and all(map(matches, value, arguments))
    return all(matches(item, arguments[0]) for item in value) if arguments else True


def type_text(hint: Any) -> str:
    """Returns an annotation as one writes it."""
    return inspect.formatannotation(hint).replace("collections.abc.", "").replace("NoneType", "None")


def type_advice(value: Any, hint: Any) -> str:
    """Returns what to do about the commonest mistake, a number in quotes, or ``""``."""
    if not isinstance(value, str):
        return ""
    try:
        fits = matches(float(value), hint) or matches(int(value), hint)
    except ValueError:
        return ""
    return f" Write it without quotes: {value}." if fits else ""
