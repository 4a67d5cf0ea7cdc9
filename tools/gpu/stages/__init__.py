"""The stages of the check, one module each: rows by name, in the order in which they are worth most."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from tools.gpu.setting import Setting

Rows = list[tuple[str, Callable[[], Mapping[str, Any]]]]
"""Name and what measures it; it returns figures by column."""


def rows_of(stage: str, setting: Setting) -> Rows:
    """Returns the rows of a stage; see the ``rows`` of its module."""
    return import_module(f"tools.gpu.stages.{stage}").rows(setting)
