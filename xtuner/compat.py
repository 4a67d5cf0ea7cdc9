"""The only place that mends a symbol of mmengine or DeepSpeed; every mend has its reason and versions.

`mend("mmengine.config")` applies the mends of that module, once; modules that use a mended library call it
after their imports. ``tests/xtuner/test_compat.py`` asks each entry whether the fault is still there.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

from packaging.specifiers import SpecifierSet

from xtuner.errors import XTunerError


@dataclass(frozen=True)
class Mend:
    """One mended symbol.

    Attributes:
        symbol: full dotted name of what is replaced or prepared.
        reason: what goes wrong without it.
        versions: the versions of the distribution for which it is applied, e.g. ``">=0.10,<0.11"``.
        apply: does the mending.
        is_needed: tells on the unmended library whether the fault is still there.
    """

    symbol: str
    reason: str
    versions: str
    apply: Callable[[], None]
    is_needed: Callable[[], bool]

    @property
    def distribution(self) -> str:
        """Name of the installed package that holds the symbol."""
        return self.symbol.split(".")[0]


_applied: set[str] = set()


def mend(prefix: str) -> None:
    """Applies, once, the mends below the module `prefix` whose version range holds the installed one."""
    for entry in MENDS:
        below = entry.symbol == prefix or entry.symbol.startswith(prefix + ".")
        if not below or entry.symbol in _applied:
            continue
        _applied.add(entry.symbol)
        installed = importlib.metadata.version(entry.distribution)
        if SpecifierSet(entry.versions, prereleases=True).contains(installed):
            entry.apply()


def installed_path(package: str) -> str:
    """Returns the folder of an importable package, as mmengine's ``get_installed_path`` means it.

    Raises:
        XTunerError: there is no such package, or it is a namespace without a file.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise XTunerError(f"A config reads its base from the package '{package}', which is not installed.")
    return os.path.dirname(spec.origin)


def is_importable(package: str) -> bool:
    """Returns whether `package` can be imported, as mmengine's ``is_installed`` means it."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def is_standard_library(module_name: str) -> bool:
    """Returns whether a config's import of `module_name` is carried out at once instead of lazily."""
    if module_name.startswith("."):
        return False
    return module_name.startswith("mmengine.config") or module_name.split(".")[0] in sys.stdlib_module_names


def _mend_installed_path() -> None:
    from mmengine.config import config

    config.get_installed_path = installed_path


def _mend_is_installed() -> None:
    from mmengine.config import config

    config.is_installed = is_importable


def _mend_is_builtin_module() -> None:
    from mmengine.config import config, utils

    config._is_builtin_module = is_standard_library
    utils._is_builtin_module = is_standard_library


def _source(module: str) -> str:
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None
    with open(spec.origin, encoding="utf-8") as file:
        return file.read()


def _asks_pkg_resources() -> bool:
    return "pkg_resources" in _source("mmengine.utils.package_utils")


def _takes_standard_library_for_lazy() -> bool:
    return "stdlib_module_names" not in _source("mmengine.config.utils")


def no_deepspeed_optimizers() -> list[str]:
    """Stands for mmengine's registration of DeepSpeed's optimizers: ours are built by class and need none."""
    return []


def _mend_optimizer_registration() -> None:
    from mmengine._strategy import deepspeed

    deepspeed.register_deepspeed_optimizers = no_deepspeed_optimizers


def _one_bit_optimizers_are_gone() -> bool:
    try:
        from deepspeed.runtime.fp16.onebit import OnebitAdam  # noqa: F401
    except ImportError:
        return True
    return False


def _mend_shared_memory_operator() -> None:
    from deepspeed import ops

    ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _would_build_shared_memory_operator() -> bool:
    return importlib.util.find_spec("deepspeed.ops.op_builder.cpu.comm") is not None


MENDS: list[Mend] = [
    Mend(
        symbol="mmengine.config.config.get_installed_path",
        reason="read_base() of a config inside a package imports pkg_resources, which setuptools 82 dropped",
        versions=">=0.10,<0.11",
        apply=_mend_installed_path,
        is_needed=_asks_pkg_resources,
    ),
    Mend(
        symbol="mmengine.config.config.is_installed",
        reason="needs pkg_resources as well",
        versions=">=0.10,<0.11",
        apply=_mend_is_installed,
        is_needed=_asks_pkg_resources,
    ),
    Mend(
        symbol="mmengine.config.utils._is_builtin_module",
        reason="compares paths with the folder of the interpreter: in a venv the standard library "
        "counts as third party, so that `import os` in a config gives a lazy object",
        versions=">=0.10,<0.11",
        apply=_mend_is_builtin_module,
        is_needed=_takes_standard_library_for_lazy,
    ),
    Mend(
        symbol="mmengine._strategy.deepspeed.register_deepspeed_optimizers",
        reason="imports 1-bit optimizers, which DeepSpeed 0.19.7 dropped: no DeepSpeed strategy can be made",
        versions=">=0.10,<0.11",
        apply=_mend_optimizer_registration,
        is_needed=_one_bit_optimizers_are_gone,
    ),
    Mend(
        symbol="deepspeed.ops.__compatible_ops__",
        reason="CPU ranks would compile a shared-memory operator for minutes; gloo gives the same losses",
        versions=">=0.10",
        apply=_mend_shared_memory_operator,
        is_needed=_would_build_shared_memory_operator,
    ),
]
"""Every mend; one entry a symbol."""
