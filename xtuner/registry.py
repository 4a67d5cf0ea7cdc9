"""Building objects from config nodes: ``dict(type=Class, **arguments)``."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from xtuner.errors import XTunerError


def import_object(name: str) -> Any:
    """Imports ``package.module.Class`` or ``package.module.Class.method``.

    Raises:
        XTunerError: no prefix of `name` is a module that holds the rest.
    """
    parts = name.split(".")
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
                raise XTunerError(f"'{name}' does not exist: {found} has no '{attribute}'. Check the spelling.")
            found = getattr(found, attribute)
        return found
    raise XTunerError(f"'{name}' cannot be imported: give the full dotted name, e.g. 'mg_llava.model.MGLLaVA'.")


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
