"""How the threads of OpenMP wait for each other, settled before torch loads it.

A thread that has done its part of an operation spins until the others have. Beside other programs it so takes the core
from the very thread that it waits for, and a step takes many times as long.
"""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping

SPIN_COUNT = "1000"
"""Turns that a thread spins, a few microseconds, before it sleeps. On an idle machine no slower than spinning on; see
``tools/benchmarks/busy_machine.py``."""

_SET_BY_USER = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def settle_waiting(environ: MutableMapping[str, str] = os.environ) -> bool:
    """Makes OpenMP's threads sleep after a short while of spinning; child processes inherit it.

    Args:
        environ: of this process.

    Returns:
        False, without effect, where the user has said how threads wait or torch is loaded already, and OpenMP with it.
    """
    if "torch" in sys.modules or any(name in environ for name in _SET_BY_USER):
        return False
    environ["GOMP_SPINCOUNT"] = SPIN_COUNT
    return True


def describe_waiting(environ: MutableMapping[str, str] = os.environ) -> str:
    """Returns what a log says of it."""
    found = [f"{name}={environ[name]}" for name in _SET_BY_USER if name in environ]
    return ", ".join(found) or "OpenMP's own way of waiting"
