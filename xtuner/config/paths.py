"""Where configs are: by path, by name, or by the file name of a path that does not exist."""

from __future__ import annotations

from pathlib import Path

import xtuner
from xtuner.errors import XTunerError, perhaps
from xtuner.log import get_logger

_NOT_CONFIGS = {"_base_", "deepspeed", "architectures"}
"""Folders below the root that hold no config of their own: shared parts and JSON files."""


def config_root() -> Path:
    """Returns the folder of the shipped configs, which configs read as ``xtuner.configs``.

    In a checkout that is a link to ``configs/`` at its top; a wheel holds the files there.
    """
    return (Path(xtuner.__file__).resolve().parent / "configs").resolve()


def config_name(name: str | Path) -> str:
    """Returns a config's name: the file name without ``.py`` (``v1.5`` keeps its dot)."""
    return Path(name).name.removesuffix(".py")


def list_configs(root: Path | None = None) -> dict[str, Path]:
    """Returns the shipped configs, name to file, sorted by file.

    Args:
        root: another folder than `config_root`.

    Raises:
        XTunerError: two files have the same name, so that a name would not say which is meant.
    """
    root = root or config_root()
    configs: dict[str, Path] = {}
    for path in sorted(root.rglob("*.py")):
        if path.name == "__init__.py" or _NOT_CONFIGS & set(path.relative_to(root).parts):
            continue
        name = config_name(path)
        if name in configs:
            raise XTunerError(f"Two configs are named '{name}': {configs[name]} and {path}. Rename one of them.")
        configs[name] = path
    return configs


def find_config(name: str | Path, root: Path | None = None) -> Path:
    """Finds a config by its path, by its name, or, where the path does not exist, by its file name.

    Args:
        name: e.g. ``configs/vicuna/x.py``, ``x``, or ``some/older/place/x.py``.
        root: folder to search for names instead of `config_root`.

    Raises:
        XTunerError: no such file or name; the message suggests the nearest name.
    """
    path = Path(name)
    if path.is_file():
        if path.suffix != ".py":
            raise XTunerError(f"'{path}' is not a config: expected a Python file (.py) or one of `xtuner list-cfg`.")
        return path
    configs = list_configs(root)
    wanted = config_name(path)
    if wanted not in configs:
        hint = perhaps(wanted, configs) or "; `xtuner list-cfg` lists all"
        raise XTunerError(f"there is no config '{name}': neither a file nor a known name{hint}.")
    if len(path.parts) > 1:
        get_logger().info("'%s' does not exist; using the config of that name, %s", name, configs[wanted])
    return configs[wanted]
