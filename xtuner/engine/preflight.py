"""Finds what a run lacks before anything is built: all of it at once."""

from __future__ import annotations

import glob
import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from xtuner.engine.validation import chosen_benchmarks
from xtuner.errors import ProblemsError, XTunerError

_FILE_SUFFIXES = ("_path", "_folder", "_pth", "_file")
_NAME_OR_PATH = "_name_or_path"


def missing_files(settings: Mapping[str, Any]) -> list[str]:
    """Returns one sentence for each top-level setting that names a file or folder which is not there.

    A setting means a file by its name's end (``_path``, ``_folder``, ``_pth``, ``_file``; a list means
    several). One that ends in ``_name_or_path`` may be a name on the Hub (``owner/name``), so only what
    cannot be one is looked for.
    """
    problems = []
    for key, value in settings.items():
        if not isinstance(key, str) or not key.endswith(_FILE_SUFFIXES):
            continue
        for item in value if isinstance(value, (list, tuple)) else ():
            # one of several sources of data, with paths of its own
            problems += missing_files(item) if isinstance(item, Mapping) else []
        for path in _strings(value):
            if key.endswith(_NAME_OR_PATH) and not _is_local(path):
                continue
            if not Path(path).expanduser().exists() and not glob.glob(path):
                problems.append(f"{key}: '{path}' does not exist. Set it in the config or by --cfg-options {key}=...")
    return problems


def missing_training_files(cfg: Mapping[str, Any]) -> list[str]:
    """`missing_files` without those of benchmarks: a training does not need them, and `xtuner test` names them."""
    return missing_files({key: value for key, value in cfg.items() if not key.startswith("benchmark")})


def preflight(cfg: Mapping[str, Any], name: str) -> None:
    """Checks files and optional packages that the training of `cfg` needs.

    Raises:
        ProblemsError: with everything that is missing.
    """
    problems = missing_training_files(cfg)
    if "wandb" in (cfg.get("visualizers") or ()) and importlib.util.find_spec("wandb") is None:
        problems.append("visualizers: 'wandb' is not installed. Run 'pip install wandb', or leave it out.")
    for node in ("model", "train_dataset", "train_dataloader", "optimizer", "schedule", "runtime"):
        if node not in cfg:
            problems.append(f"{node}: missing. A config for training needs it; take configs/_base_ as its base.")
    runtime = cfg.get("runtime") or {}
    if runtime.get("val_interval") is not None:
        try:
            names = runtime.get("val_benchmarks")
            chosen_benchmarks(cfg, [names] if isinstance(names, str) else names)
        except XTunerError as error:
            problems.append(str(error))
    if problems:
        raise ProblemsError(f"what {name} needs", problems)


def _strings(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        return [value] if value else []
    return [item for item in value if isinstance(item, str)] if isinstance(value, (list, tuple)) else []


def _is_local(name: str) -> bool:
    """True for what cannot be a Hub name, which is ``name`` or ``owner/name``."""
    return name.startswith(("/", ".", "~")) or name.count("/") > 1
