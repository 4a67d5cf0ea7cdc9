"""What a checkpoint's run was trained with: its resolved config, which training writes beside the checkpoints."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xtuner.model.files.weight_files import pointed_at

_SUFFIX = "_resolved.py"
_OF_NO_RUN = {"benchmarks", "resolved_from", "unused_settings"}


def run_settings(checkpoint: str | Path) -> tuple[str, dict[str, Any]] | None:
    """Returns the name of the config that a checkpoint's run was started with, and its plain settings as resolved.

    The file is read, not run: it may come with the checkpoint from anywhere.

    Args:
        checkpoint: in a run's folder, or that folder.

    Returns:
        None where no config is beside the checkpoint. Nodes (``dict(type=...)``) are left out.
    """
    found = sorted(pointed_at(checkpoint).resolve().parent.glob(f"*{_SUFFIX}"), key=lambda file: file.stat().st_mtime)
    if not found:
        return None
    try:
        tree = ast.parse(found[-1].read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return None
    settings: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            try:
                settings[node.targets[0].id] = _value(node.value)
            except ValueError:
                continue  # a node
    return found[-1].name.removesuffix(_SUFFIX), settings


def _value(node: ast.expr) -> Any:
    """A plain value, or a ``dict(...)`` of them such as rates by part."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        named = {keyword.arg: keyword.value for keyword in node.keywords}
        if None in named or "type" in named:
            raise ValueError("a node")
        return {str(name): _value(value) for name, value in named.items()}
    return ast.literal_eval(node)


def training_facts(cfg: Mapping[str, Any], checkpoint: str | Path) -> dict[str, Any]:
    """Returns what a record of an evaluation says of the training: its own config, and both where `cfg` differs.

    Args:
        cfg: the resolved config that is evaluated with.
        checkpoint: that is evaluated.

    Returns:
        ``trained_with``: the name of the run's config; ``differs_from_training``: plain settings that the two have
        otherwise, each with the values ``training`` and ``here``. Empty where no config is beside the checkpoint.
    """
    run = run_settings(checkpoint)
    if run is None:
        return {}
    name, settings = run
    found = {}
    for key, value in sorted(settings.items()):
        # tuples and lists are the same in both files
        trained, here = (json.loads(json.dumps(one, default=str)) for one in (value, cfg.get(key)))
        if key in cfg and key not in _OF_NO_RUN and trained != here:
            found[key] = {"training": trained, "here": here}
    return {"trained_with": name, "differs_from_training": found}
