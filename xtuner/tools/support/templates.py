"""Prompt templates of a config: unknown ones, and those that do not fit the language model."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from xtuner.data.text import build_template
from xtuner.data.text.fitting import misfits
from xtuner.errors import ProblemsError, XTunerError
from xtuner.registry import build


def check_templates(cfg: Mapping[str, Any], name: str) -> list[str]:
    """Checks every template that a resolved config names; returns how they differ from the LLM's own chat format.

    Only a tokenizer that is on this machine is compared.

    Args:
        cfg: the resolved config.
        name: of the config, for messages.

    Raises:
        ProblemsError: unknown templates, "auto" where none can be made, or a tokenizer that cannot be used.
    """
    problems: list[str] = []
    tokenizer = None
    node = cfg.get("tokenizer")
    if isinstance(node, Mapping) and _is_here(str(node.get("name_or_path", ""))):
        try:
            tokenizer = build(node)
        except XTunerError as error:
            problems.append(str(error))
    notes: list[str] = []
    for place, value in _named(dict(cfg.items())):
        if value == "auto" and tokenizer is None:
            notes.append(f"{place}: 'auto' is not checked: the LLM's tokenizer is not on this machine")
            continue
        try:
            template = build_template(value, tokenizer, cfg.get("system_prompt"))
        except XTunerError as error:
            problems.append(f"{place}: {error}")
            continue
        notes += [] if tokenizer is None else misfits(template, tokenizer)
    if problems:
        raise ProblemsError(name, list(dict.fromkeys(problems)))
    return list(dict.fromkeys(notes))


def _named(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Each ``prompt_template`` with its place, at the top level and in every part and source."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            inside = f"{place}.{key}" if place else str(key)
            if key == "prompt_template" and inner is not None:
                yield inside, inner
            elif isinstance(inner, (Mapping, list, tuple)):
                yield from _named(inner, inside)
    elif isinstance(value, (list, tuple)):
        for number, inner in enumerate(value):
            yield from _named(inner, f"{place}[{number}]")


def _is_here(name_or_path: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return os.path.isdir(name_or_path) or (
        name_or_path.count("/") == 1
        and not name_or_path.startswith((".", "/"))
        and isinstance(try_to_load_from_cache(name_or_path, "tokenizer_config.json"), str)
    )
