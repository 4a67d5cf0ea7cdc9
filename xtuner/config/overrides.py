"""``--cfg-options``: reading them and putting them into a config, refusing names that are not there."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from xtuner.config.plain import to_plain
from xtuner.config.references import whole_reference
from xtuner.config.schema import RESOLVED_FROM, allowed_keys, takes_any_key, top_level_names
from xtuner.errors import ProblemsError, nearest
from xtuner.registry import is_node

_WORDS = {"true": True, "false": False, "none": None, "null": None}
_BRACKETS = {"[": "]", "(": ")", "{": "}"}


def parse_overrides(options: Iterable[str], where: str = "--cfg-options") -> dict[str, Any]:
    """Reads ``key=value``: numbers, True/False/None, lists, tuples, dicts (``[a,b]``, ``{a:1}``), quoted or plain text.

    Spaces and commas are kept: ``image_folder=/data/my pictures`` is one path. A key given twice takes the
    last value.

    Args:
        options: words of a command.
        where: the argument that they stand behind.

    Raises:
        ProblemsError: words without ``=`` or without a key.
    """
    overrides: dict[str, Any] = {}
    problems = []
    for option in options:
        key, equals, text = option.partition("=")
        if not equals or not key.strip():
            problems.append(f"'{option}' is not of the form key=value, e.g. batch_size=4.")
            continue
        overrides[key.strip()] = _parse_value(text.strip())
    if problems:
        raise ProblemsError(where, problems)
    return overrides


def _parse_value(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        pass
    if text and _BRACKETS.get(text[0]) == text[-1]:  # [tensorboard,wandb]: a shell eats quotes, so words need none
        words = [item.strip() for item in _split(text[1:-1]) if item.strip()]
        if text[0] == "{":
            pairs = [word.rpartition(":") for word in words]
            if not all(colon for _, colon, _ in pairs):
                return text
            return {str(_parse_value(key.strip())): _parse_value(value.strip()) for key, _, value in pairs}
        items = [_parse_value(word) for word in words]
        return tuple(items) if text[0] == "(" else items
    return text


def _split(text: str) -> list[str]:
    """Splits at the commas outside of brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in _BRACKETS) - (letter in _BRACKETS.values())
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def apply_overrides(root: dict[str, Any], overrides: Mapping[str, Any], problems: list[str]) -> None:
    """Puts `overrides` into the config `root`, in place.

    Args:
        root: the config as written, plain data.
        overrides: dotted key to value. A dict without ``type`` is merged into a dict that stands there; any other
            value replaces what stands there.
        problems: gets a sentence for each key that the config does not have.
    """
    for parts, value in _flatten(overrides, root):
        key = ".".join(parts)
        plain = to_plain(value, key, problems)
        if parts[0] not in top_level_names(root):
            problems.append(f"'{parts[0]}' is not in this config.{nearest(parts[0], root)}")
        elif root.get(RESOLVED_FROM) and not isinstance(root.get(parts[0]), (dict, list, tuple)):
            problems.append(
                f"'{key}' would have no effect: this config is resolved (from '{root[RESOLVED_FROM]}'): "
                "override the setting "
                f"where it is used, e.g. optimizer.{parts[0]}, or use the unresolved config."
            )
        else:
            _put(root, parts, plain, [], problems)


def _flatten(
    overrides: Mapping[str, Any], standing: Any, walked: tuple[str, ...] = ()
) -> Iterable[tuple[list[str], Any]]:
    """Yields path and value of what replaces something; `standing` is what stands at the path `walked`."""
    for key, value in overrides.items():
        # names of weights hold points
        parts = (key,) if takes_any_key(standing, ".".join(walked)) else tuple(key.split("."))
        there = standing
        for part in parts:
            there = _inside(there, part)
        merged = isinstance(there, Mapping) or whole_reference(there) is not None
        if isinstance(value, Mapping) and value and not is_node(value) and merged:
            yield from _flatten(value, there, (*walked, *parts))
        else:
            yield [*walked, *parts], value


def _inside(container: Any, part: str) -> Any:
    """Returns what stands at `part` of a dict or list; None without it."""
    if isinstance(container, (list, tuple)) and part.isdigit() and int(part) < len(container):
        return container[int(part)]
    return container.get(part) if isinstance(container, Mapping) else None


def _put(container: Any, parts: Sequence[str], value: Any, walked: list[str], problems: list[str]) -> Any:
    """Returns `container` with `value` at the path `parts`; dicts and lists change in place."""
    here, part, rest = ".".join(walked), parts[0], parts[1:]
    name = whole_reference(container)
    if name is not None:
        problems.append(
            f"'{'.'.join([*walked, *parts])}': {here} is '{container}'. Override {'.'.join([name, *parts])}."
        )
        return container
    if isinstance(container, tuple):
        return tuple(_put(list(container), parts, value, walked, problems))
    if isinstance(container, list):
        if not part.isdigit() or int(part) >= len(container):
            problems.append(f"'{'.'.join([*walked, part])}': {here} has {len(container)} items, counted from 0.")
            return container
        index = int(part)
        container[index] = _put(container[index], rest, value, [*walked, part], problems) if rest else value
        return container
    if not isinstance(container, dict):
        problems.append(f"'{'.'.join([*walked, *parts])}': {here} is {container!r} and has no '{part}'.")
        return container
    unknown = part not in container and (rest or part not in allowed_keys(container, here))
    if unknown and (rest or not takes_any_key(container, here)):
        choices = {*container, *allowed_keys(container, here)}
        problems.append(f"'{'.'.join([*walked, part])}' is not in this config.{nearest(part, choices)}")
        return container
    container[part] = _put(container[part], rest, value, [*walked, part], problems) if rest else value
    return container
