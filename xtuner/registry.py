"""Building objects from config nodes: ``dict(type=Class, **arguments)``."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from xtuner.errors import XTunerError, nearest

_warned_of: set[str] = set()
"""Old names that this process has warned of."""


def import_object(name: str) -> Any:
    """Imports ``package.module.Class`` or ``package.module.Class.method``, also by the name before it moved.

    Raises:
        XTunerError: no prefix of `name` is a module that holds the rest.
    """
    parts = current_types({"type": name})["type"].split(".")
    for cut in range(len(parts) - 1, 0, -1):
        module_name = ".".join(parts[:cut])
        try:
            found: Any = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            # a missing prefix of the name itself means "try a shorter one"; a package missing inside it is an error
            if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
                continue
            raise
        for attribute in parts[cut:]:
            if not hasattr(found, attribute):
                raise XTunerError(
                    f"'{name}' does not exist: '{getattr(found, '__name__', found)}' has no '{attribute}'."
                    f"{_nearest_name(name)} Check the spelling."
                )
            found = getattr(found, attribute)
        return found
    raise XTunerError(
        f"'{name}' cannot be imported: give the full dotted name, e.g. 'mg_llava.model.MGLLaVA'.{_nearest_name(name)}"
    )


def current_types(node: Any, where: str = "") -> Any:
    """Returns a copy of `node` in which each ``type`` has the name of today, and warns once of all that moved.

    Args:
        node: dicts, lists and tuples to any depth; a ``type`` that is no text stays as it is.
        where: the file that holds `node`, for the warning.
    """
    moved: dict[str, str] = {}
    renamed = _renamed(node, moved)
    if fresh := {old: new for old, new in moved.items() if old not in _warned_of}:
        _warned_of.update(fresh)
        from xtuner.log import get_logger  # rich, which a command's help does not need

        get_logger().warning(
            "%sold names of classes that have moved. They still load; please write the new ones: %s",
            f"{where} has " if where else "",
            ", ".join(f"{old} → {new}" for old, new in sorted(fresh.items())),
        )
    return renamed


def _renamed(node: Any, moved: dict[str, str]) -> Any:
    if isinstance(node, dict):
        copy = {key: _renamed(value, moved) for key, value in dict.items(node)}
        if isinstance(kind := copy.get("type"), str) and (new := _current_name(kind)) != kind:
            copy["type"] = moved[kind] = new
        return copy
    if isinstance(node, (list, tuple)):
        return type(node)(_renamed(item, moved) for item in node)
    return node


def _current_name(name: str) -> str:
    parts = name.split(".")
    table = _moved(parts[0])
    for cut in range(len(parts), 1, -1):
        old = ".".join(parts[:cut])
        if old in table:
            # a room may have the old module's name: what it offers has not moved
            above, below = (old, parts[cut]) if cut < len(parts) else (".".join(parts[:-1]), parts[-1])
            return name if _offers(above, below) else ".".join([table[old], *parts[cut:]])
    return name


@lru_cache
def _moved(package: str) -> Mapping[str, str]:
    """Table of `package`'s module ``moved``; empty without one. Imports no package that has none."""
    try:
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
    except ValueError:  # a module without a spec, such as __main__
        spec = None
    folders = (spec.submodule_search_locations or ()) if spec else ()
    if not any((Path(folder) / "moved.py").is_file() for folder in folders):
        return MappingProxyType({})
    return getattr(importlib.import_module(f"{package}.moved"), "MOVED", {})


def _offers(module: str, name: str) -> bool:
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError:
        return False
    return name in dir(found) or (
        hasattr(found, "__path__") and importlib.util.find_spec(f"{module}.{name}") is not None
    )


def _nearest_name(name: str) -> str:
    """A hint: what has the same last part elsewhere in the package, else the most alike."""
    package, _, last = name.partition(".")[0], *name.rpartition(".")[1:]
    try:
        found = importlib.import_module(package)
    except ImportError:
        return nearest(package, [module.name for module in pkgutil.iter_modules() if module.ispkg])
    by_last: dict[str, str] = {}
    for public in sorted(_public_names(found), key=len):
        by_last.setdefault(public.rpartition(".")[2], public)
    close = difflib.get_close_matches(last, by_last, n=1, cutoff=0.6)
    return f" Did you mean '{by_last[close[0]]}'?" if close else nearest(name, by_last.values())


def _public_names(package: Any) -> Iterator[str]:
    """Dotted names that a package and those inside it offer; nothing but the packages is imported."""
    yield from (f"{package.__name__}.{name}" for name in getattr(package, "__all__", ()))
    for module in pkgutil.iter_modules(getattr(package, "__path__", ())):
        if module.ispkg:
            try:
                inner = importlib.import_module(f"{package.__name__}.{module.name}")
            except ImportError:  # needs a library that is not installed
                continue
            yield from _public_names(inner)


def resolve_type(kind: Any) -> Callable[..., Any]:
    """Returns the class or function that a ``type`` names: itself, a dotted string or a lazy object of mmengine."""
    if isinstance(kind, str):
        return import_object(kind)
    if hasattr(kind, "build") and type(kind).__module__.startswith("mmengine.config"):
        return kind.build()
    return kind


def is_node(value: Any) -> bool:
    """True for a config node: a mapping that names its ``type``."""
    return isinstance(value, Mapping) and "type" in value


def build(node: Any, **extra: Any) -> Any:
    """Builds what `node` describes.

    Args:
        node: ``dict(type=Class or function or dotted string, **arguments)``; anything else is returned unchanged, so
            that already built objects can stand where nodes do.
        extra: arguments that the parent supplies at build time (its children's sizes, say). They win over the node's.
    """
    if not is_node(node):
        return node
    arguments = {key: value for key, value in node.items() if key != "type"}
    return resolve_type(node["type"])(**{**arguments, **extra})
