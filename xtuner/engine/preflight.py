"""Finds what a run lacks before anything is built: all of it at once."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from xtuner.config.schema import UNUSED
from xtuner.constants import VISUALIZERS
from xtuner.data.sources.locate import is_there, needs_folder
from xtuner.engine.checkpoints.checkpoint import CheckpointFolder
from xtuner.engine.checkpoints.former import check_work_dir
from xtuner.engine.hooks.validation import chosen_benchmarks
from xtuner.engine.steps.optim import build_optimizer, check_optimizer, check_rates
from xtuner.engine.steps.precision import resolve_precision
from xtuner.engine.strategies.deepspeed_settings import offloads_optimizer, read_deepspeed
from xtuner.errors import ProblemsError
from xtuner.model.meta import meta_init
from xtuner.registry import build, resolve_type

_FILE_SUFFIXES = ("_path", "_folder", "_pth", "_file")
_NAME_OR_PATH = "_name_or_path"
_REMOTE = "://"
_NAMES_TOO = ("visual_encoder_aux_path",)
"""Settings of a folder that may be a name on the Hub as well, which looks like a folder within a folder."""


def missing_files(settings: Mapping[str, Any], is_source: bool = False) -> list[str]:
    """Returns one sentence for each top-level setting that names a file or folder which is not there.

    A setting means a file by its name's end (``_path``, ``_folder``, ``_pth``, ``_file``; a list means
    several). One that ends in ``_name_or_path`` may be a name on the Hub (``owner/name``), so only what
    cannot be one is looked for.

    Args:
        settings: of a config, or of one of several sources of data.
        is_source: they are a source's, whose image_folder is its own wish.
    """
    problems = []
    for key, value in settings.items():
        if not isinstance(key, str) or not key.endswith(_FILE_SUFFIXES):
            continue
        for item in value if isinstance(value, (list, tuple)) else ():
            # one of several sources of data, with paths of its own
            problems += missing_files(item, is_source=True) if isinstance(item, Mapping) else []
        for path in _strings(value):
            if key.endswith(_NAME_OR_PATH) and not _is_local(path):
                continue
            if key == "image_folder" and not is_source and not needs_folder(settings.get("data_path")):
                # a base's, which nothing asks for
                continue
            if key == "data_path" and _REMOTE in path:
                # of a stream, which asks for it; others say that they read none
                continue
            if key in _NAMES_TOO and not _is_local(path) and not Path(path).exists() and _is_on_hub(path):
                continue
            if not Path(path).expanduser().exists() and not is_there(path):
                problems.append(f"{key}: '{path}' does not exist: set it in the config or with --cfg-options {key}=...")
    return problems


def missing_training_files(cfg: Mapping[str, Any]) -> list[str]:
    """`missing_files` without those of benchmarks: a training does not need them, and `xtuner test` names them."""
    return missing_files({key: value for key, value in used_settings(cfg).items() if not key.startswith("benchmark")})


def used_settings(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the top-level settings of a config that its nodes refer to, or that stand in it for themselves.

    A config that replaces a node leaves the settings of the old one without use, though with their values.

    Args:
        cfg: resolved; `xtuner.config.load_config` lists in it what nothing uses.
    """
    unused = cfg.get(UNUSED) or ()
    return {key: value for key, value in cfg.items() if key not in unused}


def preflight(
    cfg: Mapping[str, Any],
    name: str,
    deepspeed: str | None = None,
    resume: str | None = None,
    work_dir: Path | None = None,
    start_anew: bool = False,
) -> None:
    """Checks files, optional packages and small settings that a training needs: preparing data can take an hour.

    Args:
        cfg: resolved config.
        name: of the run.
        deepspeed: value of ``--deepspeed``, if given.
        resume: value of ``--resume``, if given.
        work_dir: the run's folder, where ``--resume auto`` looks.
        start_anew: ``--start-anew`` is given.

    Raises:
        ProblemsError: with everything that is missing or cannot be.
    """
    problems = missing_training_files(cfg)
    if deepspeed is not None:
        problems += _complaint(lambda: read_deepspeed(deepspeed))
    if work_dir is not None:
        problems += _complaint(lambda: check_work_dir(work_dir, resume, start_anew, _named_files(cfg)))
    if resume is not None and work_dir is not None:
        problems += _complaint(lambda: CheckpointFolder(work_dir).find(resume))
    problems += _absent_visualizers(cfg)
    for node in ("model", "train_dataset", "train_dataloader", "optimizer", "schedule", "runtime"):
        if node not in cfg:
            problems.append(f"{node}: missing; a training config needs it: use configs/_base_ as its base.")
        elif node in ("schedule", "runtime"):
            problems += _complaint(lambda node=node: build(cfg[node]))  # type: ignore[misc]
    precision = (cfg.get("optimizer") or {}).get("precision", "auto")
    problems += _complaint(lambda: resolve_precision(precision, torch.device(_device_type())))
    runtime = cfg.get("runtime") or {}
    if runtime.get("val_interval") is not None:
        names = runtime.get("val_benchmarks")
        problems += _complaint(lambda: chosen_benchmarks(cfg, [names] if isinstance(names, str) else names))
    # last: it builds the model without weights, which needs what is asked for above
    problems += [] if problems else _unfit_model(cfg, deepspeed)
    if problems:
        raise ProblemsError(f"what {name} needs", problems)


def _unfit_model(cfg: Mapping[str, Any], deepspeed: str | None) -> list[str]:
    """What is wrong with the model's parts together, and with the optimizer for them, this device and ZeRO stage."""
    shapes: list[Any] = []

    def describe() -> None:
        with meta_init():
            shapes.append(build(cfg["model"]))

    problems = _complaint(describe)
    node = cfg["optimizer"]
    if not isinstance(node, Mapping) or resolve_type(node.get("type")) is not build_optimizer:
        return problems
    settings = read_deepspeed(deepspeed) if deepspeed is not None else None
    stage = 0 if settings is None else settings["zero_optimization"]["stage"]
    offloads = settings is not None and offloads_optimizer(settings)
    problems += _complaint(lambda: check_optimizer(node, torch.device(_device_type()), stage, offloads))
    for shape in shapes:
        problems += _complaint(lambda: check_rates(node, shape))  # noqa: B023  called at once
    return problems


def _absent_visualizers(cfg: Mapping[str, Any]) -> list[str]:
    """One sentence for each service of curves whose package is not installed."""
    names = (cfg.get("runtime") or {}).get("visualizers", cfg.get("visualizers")) or ()
    return [
        f"visualizers: '{name}' is not installed: run 'pip install {name}', or remove {name} from visualizers."
        for name in ([names] if isinstance(names, str) else names)
        if name in VISUALIZERS and not _is_installed(name)
    ]


def _is_installed(package: str) -> bool:
    # a folder of the same name, which wandb and dvclive leave behind, has no file of its own
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def _complaint(check: Callable[[], Any]) -> list[str]:
    """Runs `check`; returns what it found wrong."""
    try:
        check()
    except ProblemsError as error:
        return list(error.problems)
    except ValueError as error:  # XTunerError is one
        return [str(error)]
    return []


def _device_type() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _strings(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        return [value] if value else []
    return [item for item in value if isinstance(item, str)] if isinstance(value, (list, tuple)) else []


def _named_files(settings: Mapping[str, Any]) -> Iterable[str]:
    """Yields what `missing_files` would look for."""
    for key, value in settings.items():
        if not isinstance(key, str) or not key.endswith(_FILE_SUFFIXES):
            continue
        for item in value if isinstance(value, (list, tuple)) else ():
            if isinstance(item, Mapping):
                yield from _named_files(item)
        yield from _strings(value)


def _is_on_hub(name: str) -> bool:
    """True for the name of a model that the Hub's cache or the Hub itself has, or has for others."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import GatedRepoError

    try:
        hf_hub_download(name, "config.json")
    except GatedRepoError:
        # its reader says why
        return True
    except (OSError, ValueError):
        return False
    return True


def _is_local(name: str) -> bool:
    """True for what cannot be a Hub name, which is ``name`` or ``owner/name``."""
    return name.startswith(("/", ".", "~")) or name.count("/") > 1
