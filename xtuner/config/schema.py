"""What a config may say: the framework's top-level names, and the arguments that a node's type takes."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from xtuner.errors import XTunerError
from xtuner.registry import is_node, resolve_type

NODES = (
    "model",
    "train_dataset",
    "tokenizer",
    "image_processor",
    "optimizer",
    "schedule",
    "runtime",
    "evaluation",
    "detector",
    "box_generation",
)
"""Top-level names that hold one node, ``dict(type=…)``."""

NODE_LISTS = ("benchmarks",)
"""Top-level names that hold a list of nodes."""

PLAIN_DICTS = {"train_dataloader": ("batch_size", "num_workers", "sampler")}
"""Top-level names that hold a dict without a type, and its keys."""

RESOLVED_FROM = "resolved_from"
"""In a resolved config, whose references are gone: the name of the config that it came from."""

UNUSED = "unused_settings"
"""Set by `load_config`: settings of a base that nothing refers to any more; no mistake of the config."""

SETTINGS = ("deepspeed", RESOLVED_FROM, UNUSED)
"""Plain settings that commands read themselves."""

KNOWN_NAMES = (*NODES, *NODE_LISTS, *PLAIN_DICTS, *SETTINGS)


@dataclass(frozen=True)
class Parameter:
    """An argument: its annotation (``Any`` where it is not readable) and whether it must be given."""

    hint: Any
    required: bool


@dataclass(frozen=True)
class Signature:
    """What a node's type takes.

    Attributes:
        name: of the class or function, for messages.
        parameters: by name, those that the parent supplies left out.
        by_parent: names that the parent supplies when it builds the node (``provided_by_parent``).
        takes_any: the type has ``**kwargs``, so that no key can be called unknown.
    """

    name: str
    parameters: Mapping[str, Parameter]
    by_parent: tuple[str, ...]
    takes_any: bool


@lru_cache(maxsize=512)
def read_signature(kind: str) -> Signature:
    """Imports what the dotted name `kind` says and reads which arguments it takes.

    Raises:
        XTunerError: it cannot be imported or called.
    """
    try:
        target = resolve_type(kind)
        found = inspect.signature(target)
    except XTunerError:
        raise
    except Exception as error:  # importing runs any code, and may fail in any way
        raise XTunerError(f"'{kind}' cannot be imported ({type(error).__name__}: {error}).") from error
    by_parent = tuple(getattr(target, "provided_by_parent", _given_to_optimizers(target)))
    namespace = getattr(target.__init__ if inspect.isclass(target) else target, "__globals__", {})
    variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    parameters = {
        name: Parameter(_read_hint(parameter.annotation, namespace), parameter.default is inspect.Parameter.empty)
        for name, parameter in found.parameters.items()
        if parameter.kind not in variadic and name not in by_parent
    }
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in found.parameters.values())
    return Signature(getattr(target, "__name__", kind), parameters, by_parent, takes_any)


def _given_to_optimizers(target: Any) -> tuple[str, ...]:
    torch = sys.modules.get("torch")
    is_optimizer = torch is not None and inspect.isclass(target) and issubclass(target, torch.optim.Optimizer)
    return ("params", "lr", "weight_decay") if is_optimizer else ()


def _read_hint(annotation: Any, namespace: dict[str, Any]) -> Any:
    if annotation is inspect.Parameter.empty:
        return Any
    if not isinstance(annotation, str):
        return annotation
    try:
        # the annotation of an imported class, in its own module: postponed by `from __future__ import
        # annotations`
        return eval(annotation, dict(namespace))
    except (NameError, AttributeError, TypeError, SyntaxError):  # e.g. a name imported for type checkers only
        return Any


def allowed_keys(container: Mapping[str, Any], where: str) -> set[str]:
    """Returns the keys that the dict at the dotted name `where` may have, beside those that it has."""
    if not where:
        return set(KNOWN_NAMES)
    if is_node(container):
        try:
            return {"type", *read_signature(container["type"]).parameters}
        except XTunerError:
            return set()
    return set(PLAIN_DICTS.get(where, ()))


def takes_any_key(container: Any, where: str) -> bool:
    """True for a setting whose value is a dict without a type (rates by part, say): its keys are values too."""
    is_setting = bool(where) and "." not in where and where not in PLAIN_DICTS
    return is_setting and isinstance(container, Mapping) and not is_node(container)


def top_level_names(root: Mapping[str, Any]) -> set[str]:
    """Returns the names that may stand first in an override of the config `root`."""
    return {*root, *KNOWN_NAMES} - {RESOLVED_FROM, UNUSED}
