"""Building a model's shape without its weights: to count parameters and check configs on any machine."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import torch

_STATE = threading.local()


@contextlib.contextmanager
def meta_init(device: str | None = "meta") -> Iterator[None]:
    """Under this context every builder makes its module on the device ``meta``: no memory, no files of weights.

    Args:
        device: None = on the device that is current, with random weights; files of weights are not read either way.
    """
    before = in_meta_init()
    _STATE.active = True
    try:
        with contextlib.nullcontext() if device is None else torch.device(device):
            yield
    finally:
        _STATE.active = before


def in_meta_init() -> bool:
    """True under `meta_init`."""
    return getattr(_STATE, "active", False)


def architecture_file(name_or_path: str) -> Path | None:
    """Returns the shipped ``configs/architectures/<last part of the name>.json``, or None without one.

    These files hold the published sizes of the models that our configs name, so that a config can be checked
    on a machine that has neither the weights nor a network.
    """
    file = Path(__file__).resolve().parents[1] / "configs" / "architectures" / f"{Path(name_or_path).name}.json"
    return file if file.is_file() else None
