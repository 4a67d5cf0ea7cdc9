"""Dependencies run one way: configs → mg_llava → xtuner → libraries."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

FORBIDDEN = {
    "xtuner": {"mg_llava", "configs", "tools", "tests", "script"},
    "mg_llava": {"configs", "tools", "tests", "script"},
}


def imported_packages(source: str) -> Iterator[tuple[int, str]]:
    """Yields line and package of each absolute import, inside functions too, and of each dotted name."""
    tree = ast.parse(source)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.lineno, node.module.split(".")[0]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            # import_object("mg_llava.model.MGLLaVA") would be a way back too
            if re.fullmatch(r"[a-z_]\w*(\.\w+)+", node.value):
                yield node.lineno, node.value.split(".")[0]


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_no_import_runs_the_other_way(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files, f"no Python files in {package}"
    ways_back = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in files
        for line, name in imported_packages(path.read_text(encoding="utf-8"))
        if name in FORBIDDEN[package]
    ]
    assert ways_back == []


@pytest.mark.parametrize(
    "source",
    [
        "import mg_llava.model",
        "from mg_llava.model import MGLLaVA",
        "def f():\n    from mg_llava import boxes",
        "if True:\n    import torch, mg_llava as m",
        "build(dict(type='mg_llava.model.MGLLaVA'))",
    ],
)
def test_the_walk_sees(source):
    assert "mg_llava" in [name for _, name in imported_packages(source)]


@pytest.mark.parametrize(
    "source", ["'''mg_llava.model'''", "from .mg_llava import x", "x = 'see mg_llava'", "import mg_llavanda"]
)
def test_the_walk_does_not_take_for_an_import(source):
    assert "mg_llava" not in [name for _, name in imported_packages(source)]
