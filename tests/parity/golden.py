"""Where the recorded data of the original implementation lies, and how its weights are made."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np

DATA = Path(__file__).parent / "data"


def golden_path(name: str) -> Path:
    """Path of a recorded file or folder; its absence is an error that says what to do, never a skip."""
    path = DATA / name
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing: it is part of the repository (git checkout tests/parity/data brings it back)"
        )
    return path


def golden_arrays(name: str) -> dict[str, np.ndarray]:
    """All arrays of a recorded .npz by name."""
    with np.load(golden_path(name)) as arrays:
        return dict(arrays)


def golden_weights() -> ModuleType:
    """The module that makes the recorded runs' weights by hashing: ``det_uniform`` and ``fill_module``."""
    spec = importlib.util.spec_from_file_location("detw", golden_path("detw.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
