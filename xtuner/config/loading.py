"""Reading a config, overriding, resolving, checking; and writing it so that it loads again."""

from __future__ import annotations

import ast
import os
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.config.utils import ConfigParsingError

from xtuner.compat import mend
from xtuner.config.check import check_plain, unused_names
from xtuner.config.joining import base_path, read_bases
from xtuner.config.overrides import apply_overrides
from xtuner.config.paths import config_name, config_root, find_config
from xtuner.config.plain import to_plain
from xtuner.config.references import resolve_references
from xtuner.config.schema import RESOLVED_FROM, UNUSED
from xtuner.errors import ProblemsError, XTunerError, nearest
from xtuner.registry import current_types

mend("mmengine.config")


def load_config(path_or_name: str | Path, overrides: Mapping[str, Any] | None = None, check: bool = True) -> Config:
    """Reads a config, applies `overrides`, resolves its references and checks it.

    Args:
        path_or_name: what `find_config` finds.
        overrides: dotted key to value, e.g. from `parse_overrides`.
        check: also look at every node's arguments and for names that nothing uses.

    Returns:
        The resolved config: no references, types as dotted names, ``resolved_from`` set to the config's name.
        Its attribute ``as_written`` is the config with the overrides and with its references.

    Raises:
        ProblemsError: all mistakes at once.
        XTunerError: no such config, or its Python code fails.
    """
    path = find_config(path_or_name)
    problems: list[str] = []
    written = to_plain(_read(path)._to_lazy_dict(), "", problems)
    apply_overrides(written, overrides or {}, problems)
    written = current_types(written, str(path))
    _forgive_inherited(written, path, overrides or {})
    resolved = resolve_references(written, problems)
    if check:
        problems += check_plain(written, resolved)
    if problems:
        raise ProblemsError(f"config {path}", list(dict.fromkeys(problems)))
    resolved.setdefault(RESOLVED_FROM, config_name(path))
    cfg = Config(resolved, filename=str(path))
    # an attribute of the object, not a key of the config: mmengine's own __setattr__ would make it one
    object.__setattr__(cfg, "as_written", Config(written, filename=str(path)))
    return cfg


def _forgive_inherited(written: dict[str, Any], path: Path, overrides: Mapping[str, Any]) -> None:
    """Lists in ``unused_settings`` the unused names that are typed neither in the file nor as an override.

    A node that is replaced leaves its base's settings without use, and plain Python may read a name. What is
    listed is forgiven, also after a dump, where inherited names look like the file's own.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    read = {node.id for node in names if isinstance(node.ctx, ast.Load)}
    typed = {node.id for node in names if isinstance(node.ctx, ast.Store)} - read - {*written.get(UNUSED, ())}
    typed |= {key.split(".")[0] for key in overrides}
    if forgiven := tuple(name for name in unused_names(written) if name not in typed):
        written[UNUSED] = forgiven


def _read(path: Path) -> Config:
    try:
        # always lazily, also a dumped file without imports: mmengine's other way replaces text in braces
        return Config.fromfile(str(path), lazy_import=True)
    except ConfigParsingError as error:
        raise XTunerError(_missing_base(path) or f"Config {path} cannot be read: {error}") from error
    except Exception as error:  # a config is Python code and may fail in any way
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.endswith(".py")]
        inside = [frame for frame in frames if frame.name == "<module>" and Path(frame.filename).is_file()]
        last = inside[-1] if inside else None
        place = f" ({last.filename}, line {last.lineno})" if last and last.filename != __file__ else ""
        raise XTunerError(f"Config {path} cannot be read{place}: {type(error).__name__}: {error}") from error


def _missing_base(path: Path, seen: tuple[Path, ...] = ()) -> str | None:
    """Names the base that a config, or one of its bases, reads and that is not there; None if all are."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        for base in read_bases(node):
            file = base_path(base.module or "", base.level, path)
            if not file.is_file():
                return (
                    f"Config {path}, line {base.lineno}: the base '{'.' * base.level}{base.module}' does not exist "
                    f"({file}).{_nearest_base(base.module or '')} "
                    "Read a shipped config as `from xtuner.configs.FOLDER.NAME import *`."
                )
            if file not in seen and (found := _missing_base(file, (*seen, file))):
                return found
    return None


def _nearest_base(module: str) -> str:
    root = config_root()
    names = [".".join(file.relative_to(root).with_suffix("").parts) for file in sorted(root.rglob("*.py"))]
    return nearest(f"xtuner.configs.{module.removeprefix('xtuner.configs.')}", [f"xtuner.configs.{n}" for n in names])


def dump_config(cfg: Config, path: str | Path) -> None:
    """Writes `cfg` as one Python file that loads again to an equal config, or replaces it atomically.

    Args:
        cfg: the resolved config, or its ``as_written``, which later overrides still reach everywhere.
        path: ends in ``.py``.

    Raises:
        XTunerError: another ending.
    """
    path = Path(path)
    if path.suffix != ".py":
        raise XTunerError(f"A config cannot be written to '{path}': expected a name that ends in .py.")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(cfg.pretty_text, encoding="utf-8")
    partial.replace(path)
