"""Resolving '${name}': one setting in one place reaches everything that refers to it."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from typing import Any

from xtuner.errors import nearest

_REFERENCE = re.compile(r"\$\{([^{}]*)\}")


def whole_reference(value: Any) -> str | None:
    """Returns the name if `value` is one reference and nothing else: ``'${lr}'`` → ``'lr'``; else None."""
    match = _REFERENCE.fullmatch(value) if isinstance(value, str) else None
    return match.group(1) if match else None


def has_reference(value: Any) -> bool:
    """Returns whether the text `value` holds a reference."""
    return isinstance(value, str) and _REFERENCE.search(value) is not None


def referenced_names(value: Any) -> Iterator[str]:
    """Yields the dotted name of every reference in a tree of dicts, lists and tuples."""
    if isinstance(value, Mapping):
        for item in value.values():
            yield from referenced_names(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from referenced_names(item)
    elif isinstance(value, str):
        yield from _REFERENCE.findall(value)


def resolve_references(root: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    """Returns a copy of `root` without references; `root` stays as it is.

    A text that is one reference takes the value's type (``'${batch_size}'`` becomes an int; a node becomes a
    copy of the node); inside a longer text, a plain value is written into it.

    Args:
        root: the whole config as plain data.
        problems: gets a sentence for each unknown name and each circle; such a text stays as written.
    """
    resolver = _Resolver(root, problems)
    return {name: resolver.resolve(value, name) for name, value in root.items()}


class _Resolver:
    def __init__(self, root: dict[str, Any], problems: list[str]) -> None:
        self.root = root
        self.problems = problems
        self.open: list[str] = []  # names being looked up: one that comes again is a circle

    def resolve(self, value: Any, where: str) -> Any:
        if isinstance(value, dict):
            return {key: self.resolve(item, f"{where}.{key}") for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            items = [self.resolve(item, f"{where}.{index}") for index, item in enumerate(value)]
            return items if isinstance(value, list) else tuple(items)
        if not isinstance(value, str):
            return copy.copy(value)
        name = whole_reference(value)
        if name is not None:
            found, result = self.look_up(name, where)
            return result if found else value
        return _REFERENCE.sub(lambda match: self.as_text(match, where), value)

    def as_text(self, match: re.Match[str], where: str) -> str:
        found, result = self.look_up(match.group(1), where)
        if found and not isinstance(result, (str, int, float)):
            self.problems.append(
                f"{where}: {match.group()} is {_brief(result)} and cannot be part of a text: set it, "
                "or use the reference alone."
            )
        return str(result) if found else match.group()

    def look_up(self, name: str, where: str) -> tuple[bool, Any]:
        """Returns whether there is a value of the dotted `name`, and the value, resolved."""
        if name in self.open:
            circle = " → ".join([*self.open[self.open.index(name) :], name])
            self.problems.append(
                f"{where}: these settings refer to each other in a circle: {circle}; set one of them to a value."
            )
            return False, None
        self.open.append(name)
        found, value = self.descend(name, where)
        if found:
            value = self.resolve(value, name)
        self.open.pop()
        return found, value

    def descend(self, name: str, where: str) -> tuple[bool, Any]:
        current: Any = self.root
        walked: list[str] = []
        for part in name.split("."):
            through = whole_reference(current)
            if through is not None:
                found, current = self.look_up(through, where)
                if not found:
                    return False, None
            names = _names_of(current)
            if part not in names:
                inside = f"'{'.'.join(walked)}' has no '{part}'" if walked else f"there is no setting '{part}'"
                self.problems.append(f"{where}: in '${{{name}}}' {inside}.{nearest(part, names)}")
                return False, None
            current = names[part]
            walked.append(part)
        return True, current


def _names_of(value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    if isinstance(value, (list, tuple)):
        return {str(index): item for index, item in enumerate(value)}
    return {}


def _brief(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
