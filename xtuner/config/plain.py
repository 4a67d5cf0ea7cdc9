"""Turning what a config file holds into plain data: what a dumped config can say, and nothing else.

Imported classes become dotted names (``mg_llava.model.mg_llava.MGLLaVA``), so that a config looks the same before and
after a dump; `xtuner.registry.resolve_type` gives the class. Everything that would come back as something
else is a mistake.
"""

from __future__ import annotations

import inspect
import math
from keyword import iskeyword
from pathlib import PurePath
from types import ModuleType
from typing import Any

from mmengine.config.lazy import LazyAttr, LazyObject

from xtuner.errors import XTunerError
from xtuner.registry import import_object

UNUSABLE = object()
"""Stands where a value was that could not be taken; its mistake is already reported."""


def to_plain(value: Any, where: str, problems: list[str]) -> Any:
    """Returns a copy of `value` as None, bool, int, float, str, list, tuple and dict only.

    Args:
        value: what the config or an override gives.
        where: its dotted name, for messages; empty for the whole config.
        problems: gets a sentence for every value that cannot be dumped and reloaded.
    """
    if isinstance(value, dict):
        # dict.items: mmengine's own would import lazy objects
        return {
            k: _entry(k, v, where, problems) for k, v in dict.items(value) if where or not isinstance(v, ModuleType)
        }
    if isinstance(value, (list, tuple)):
        items = [to_plain(item, f"{where}.{index}", problems) for index, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, float) and not math.isfinite(value):
        problems.append(f"{where} is {value}, which a dumped config cannot hold: write a finite number or None.")
        return UNUSABLE
    if value is None or type(value) in (bool, int, float, str):
        return value
    problems.append(f"{where} is {_describe(value)}")
    return UNUSABLE


def _entry(key: Any, value: Any, where: str, problems: list[str]) -> Any:
    inside = f"{where}.{key}" if where else str(key)
    if not isinstance(key, str) or iskeyword(key):
        problems.append(f"{inside}: the key {key!r} cannot be dumped: expected a name that is no Python keyword.")
        return UNUSABLE
    # only `type` may hold an imported object: as any other value it would come back from a dump as mere text
    if key == "type" and where and not isinstance(value, str):
        return _type_name(value, inside, problems)
    return to_plain(value, inside, problems)


def _type_name(value: Any, where: str, problems: list[str]) -> Any:
    if isinstance(value, (LazyObject, LazyAttr)):
        return f"{value.module}.{value}"
    name = f"{getattr(value, '__module__', None)}.{getattr(value, '__qualname__', None)}"
    if not callable(value) or not _is_importable(name, value):
        problems.append(
            f"{where} is {value!r}, which has no importable name: define it in a module and import it in the config."
        )
        return UNUSABLE
    return name


def _is_importable(name: str, value: Any) -> bool:
    try:
        return import_object(name) is value
    except (ImportError, XTunerError):
        return False


def _describe(value: Any) -> str:
    if isinstance(value, (LazyObject, LazyAttr)):
        return (
            f"the imported object {value.module}.{value}: a dumped config would turn it into text; "
            f"only `type` may hold an object; write its name in quotes, e.g. '{value}', or a dict(type=…)."
        )
    if isinstance(value, PurePath):
        return f"a {type(value).__name__}, which a dumped config cannot hold: write it as text, '{value}'."
    if inspect.isroutine(value) or inspect.isclass(value):
        return (
            f"the {_kind(value)} {value.__name__}, which a dumped config cannot hold: "
            "move it to a module and set its name as a `type`."
        )
    return (
        f"a {type(value).__name__} ({str(value)[:60]}), which a dumped config cannot hold: "
        "expected None, bool, number, text, list, tuple or dict."
    )


def _kind(value: Any) -> str:
    return "class" if inspect.isclass(value) else "function"
