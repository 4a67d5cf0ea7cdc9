"""All mistakes of a config at once, before anything is built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.config import Config

from xtuner.config.plain import to_plain
from xtuner.config.references import has_reference, referenced_names, whole_reference
from xtuner.config.schema import (
    KNOWN_NAMES,
    NODE_LISTS,
    NODES,
    PLAIN_DICTS,
    RESOLVED_FROM,
    UNUSED,
    read_signature,
)
from xtuner.config.types import matches, type_advice, type_text
from xtuner.errors import XTunerError, nearest
from xtuner.registry import is_node


def check_config(cfg: Config) -> list[str]:
    """Returns a sentence for each mistake of a config. Imports the types that it names, builds nothing.

    Found are: top-level names that nothing uses; keys that a node's type does not take or that are missing;
    values of another type than its annotation; nodes without ``type``; values that a dumped config cannot
    hold.

    Args:
        cfg: from `load_config`, or any config without references.
    """
    problems: list[str] = []
    written = getattr(cfg, "as_written", cfg)
    written, resolved = (to_plain(c._to_lazy_dict(), "", problems) for c in (written, cfg))
    return list(dict.fromkeys([*problems, *check_plain(written, resolved)]))


def check_plain(written: dict[str, Any], resolved: dict[str, Any]) -> list[str]:
    """Like `check_config`, for plain data.

    Args:
        written: with references; a node that is referred to is checked once, where it stands.
        resolved: the same without.
    """
    problems = [] if written.get(RESOLVED_FROM) else _unknown_names(written)
    for name, value in written.items():
        problems += _check_top_level(name, value)
        problems += _check_tree(value, resolved.get(name), name)
    return problems


def unused_names(written: Mapping[str, Any]) -> list[str]:
    """Returns the top-level names that no reference and no command uses."""
    used = {name.split(".")[0] for name in referenced_names(written)}
    return [name for name in written if name not in used and name not in KNOWN_NAMES]


def _unknown_names(written: Mapping[str, Any]) -> list[str]:
    unused = unused_names(written)
    known = {*written, *KNOWN_NAMES}.difference(unused)
    return [
        f"nothing uses '{name}': no '${{{name}}}' refers to it.{nearest(name, known)}"
        for name in unused
        if name not in written.get(UNUSED, ())
    ]


def _check_top_level(name: str, value: Any) -> list[str]:
    if has_reference(value) or value is None:
        return []
    if name in NODES and not is_node(value):
        return [f"{name} is {_brief(value)}: expected dict(type=…, …)."]
    if name in PLAIN_DICTS:
        if not isinstance(value, Mapping):
            return [f"{name} is {_brief(value)}: expected a dict with {', '.join(PLAIN_DICTS[name])}."]
        unknown = [key for key in value if key not in PLAIN_DICTS[name]]
        return [f"{name} does not take '{key}'.{nearest(key, PLAIN_DICTS[name])}" for key in unknown]
    if name in NODE_LISTS:
        if not isinstance(value, (list, tuple)):
            return [f"{name} is {_brief(value)}: expected a list of dict(type=…, …)."]
        wrong = [index for index, item in enumerate(value) if not is_node(item) and not has_reference(item)]
        return [f"{name}.{index} is {_brief(value[index])}: expected dict(type=…, …)." for index in wrong]
    return []


def _brief(value: Any) -> str:
    return "a dict without 'type'" if isinstance(value, Mapping) else repr(value)


def _check_tree(written: Any, resolved: Any, where: str) -> list[str]:
    """Checks every node below `written`; what stands in for a reference is checked at its own place."""
    if whole_reference(written) is not None:
        return []
    problems = _check_node(written, resolved, where) if is_node(written) and isinstance(resolved, Mapping) else []
    children: list[tuple[Any, Any, Any]] = []
    if isinstance(written, Mapping) and isinstance(resolved, Mapping):
        children = [(key, value, resolved.get(key)) for key, value in written.items()]
    elif isinstance(written, (list, tuple)) and isinstance(resolved, (list, tuple)):
        children = [(index, *pair) for index, pair in enumerate(zip(written, resolved, strict=True))]
    for key, value, resolved_value in children:
        problems += _check_tree(value, resolved_value, f"{where}.{key}")
    return problems


def _check_node(written: Mapping[str, Any], resolved: Mapping[str, Any], where: str) -> list[str]:
    kind = resolved["type"]
    if not isinstance(kind, str):
        return []  # already reported by to_plain
    try:
        signature = read_signature(kind)
    except XTunerError as error:
        return [f"{where}.type: {error}"]
    problems = []
    for key in written:
        if key == "type":
            continue
        if key in signature.by_parent:
            problems.append(f"{where}.{key} is filled in when {signature.name} is built: remove it from the config.")
        elif key in signature.parameters:
            problems += _check_value(written[key], resolved.get(key), signature.parameters[key].hint, f"{where}.{key}")
        elif not signature.takes_any:
            hint = nearest(key, signature.parameters)
            problems.append(f"{where}: {signature.name} does not take '{key}'.{hint}")
    missing = [n for n, parameter in signature.parameters.items() if parameter.required and n not in written]
    return problems + [f"{where}: {signature.name} needs '{name}', which is missing." for name in missing]


def _check_value(written: Any, resolved: Any, hint: Any, where: str) -> list[str]:
    if matches(resolved, hint):
        return []
    origin = f" (from '{written}')" if has_reference(written) else ""
    found = f"{resolved!r}{origin}"
    return [f"{where} is {found}: expected {type_text(hint)}.{type_advice(resolved, hint)}"]
