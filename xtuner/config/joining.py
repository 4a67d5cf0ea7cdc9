"""A config and its bases as the text of one file: order, comments and references as they were written."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xtuner.config.paths import config_root
from xtuner.config.schema import UNUSED
from xtuner.errors import XTunerError

_READ_BASE = "read_base"


def join_config(path: Path, overrides: Mapping[str, Any] | None = None, unused: Sequence[str] = ()) -> str:
    """Returns the source of `path` with each base in the place where it is read, imports first.

    Assignments to attributes (``train_dataloader.sampler.type = X``) become assignments to items, since a file's own
    dicts have no attributes.

    Args:
        path: of the config.
        overrides: dotted key to value, written at the end.
        unused: settings of the bases that nothing uses here, listed as such.

    Raises:
        XTunerError: a base is not there.
    """
    joined = _Joined()
    joined.add(path.resolve())
    if overrides:
        joined.body.append("# changed when the files were joined\n" + _assignments(overrides))
    if unused:
        joined.body.append(f"# settings of the base that nothing uses here\n{UNUSED} = {tuple(unused)!r}")
    head = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    parts = [f'"""{head}"""'] if head else []
    return "\n\n".join([*parts, *(["\n".join(sorted(joined.imports))] if joined.imports else []), *joined.body]) + "\n"


def base_path(module: str, level: int, file: Path) -> Path:
    """Returns the file that ``from <dots><module> import *`` reads inside ``with read_base()``.

    Args:
        module: dotted name, without the dots in front.
        level: number of dots in front; 0 for a package's config.
        file: that holds the statement.
    """
    if level:
        folder = file.parent
        for _ in range(level - 1):
            folder = folder.parent
        return folder.joinpath(*module.split(".")).with_suffix(".py")
    package, *inner = module.split(".")
    if (package, inner[:1]) == ("xtuner", ["configs"]):
        return config_root().joinpath(*inner[1:]).with_suffix(".py")
    from xtuner.compat import installed_path

    return Path(installed_path(package)).joinpath(*inner).with_suffix(".py")


class _Joined:
    """Files joined so far.

    Attributes:
        imports: import statements of all files.
        body: everything else, a text per stretch of a file.
    """

    def __init__(self) -> None:
        self.imports: set[str] = set()
        self.body: list[str] = []
        self._seen: set[Path] = set()

    def add(self, path: Path) -> None:
        """Adds a file, its bases before what follows them; each file once."""
        if path in self._seen:
            return
        self._seen.add(path)
        if not path.is_file():
            raise XTunerError(f"the base config '{path}' does not exist.")
        source = path.read_text(encoding="utf-8")
        lines = source.splitlines()
        start = 0
        for node in ast.parse(source).body:
            end = node.end_lineno or node.lineno
            if _is_docstring(node):
                start = end
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                self._stretch(path, lines[start : node.lineno - 1])
                if not (isinstance(node, ast.ImportFrom) and any(alias.name == _READ_BASE for alias in node.names)):
                    self.imports.add("\n".join(lines[node.lineno - 1 : end]))
                start = end
            elif bases := read_bases(node):
                self._stretch(path, lines[start : node.lineno - 1])
                for base in bases:
                    self.add(base_path(base.module or "", base.level, path).resolve())
                start = end
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
                target = node.targets[0]
                line = lines[target.lineno - 1]
                lines[target.lineno - 1] = _as_items(target) + line[target.end_col_offset :]
        self._stretch(path, lines[start:])

    def _stretch(self, path: Path, lines: list[str]) -> None:
        text = "\n".join(lines).strip("\n")
        if text.strip():
            self.body.append(f"# from {path.parent.name}/{path.name}\n{text}")


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def read_bases(node: ast.AST) -> list[ast.ImportFrom]:
    """Returns the imports in a block ``with read_base():``; none for any other statement."""
    calls = [item.context_expr for item in node.items] if isinstance(node, ast.With) else []
    if not any(isinstance(call, ast.Call) and ast.unparse(call.func).endswith(_READ_BASE) for call in calls):
        return []
    return [base for base in getattr(node, "body", []) if isinstance(base, ast.ImportFrom)]


def _as_items(target: ast.expr) -> str:
    """``a.b.c`` → ``a["b"]["c"]``."""
    if isinstance(target, ast.Attribute):
        return f'{_as_items(target.value)}["{target.attr}"]'
    return ast.unparse(target)


def _assignments(overrides: Mapping[str, Any]) -> str:
    lines = []
    for key, value in overrides.items():
        name, *inner = key.split(".")
        items = "".join(f"[{part}]" if part.isdigit() else f'["{part}"]' for part in inner)
        lines.append(f"{name}{items} = {value!r}")
    return "\n".join(lines)
