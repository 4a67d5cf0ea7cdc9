"""The examples in docstrings give what they show."""

from __future__ import annotations

import ast
import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for package in ("mg_llava", "xtuner")
    for path in sorted((ROOT / package).rglob("*.py"))
    if ">>> " in path.read_text("utf-8")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_of(name):
    outcome = doctest.testmod(importlib.import_module(name))
    assert outcome.attempted > 0
    assert outcome.failed == 0


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("boxes/selection.py", "BoxSelection"),
        ("model/fusion.py", "ConvGateFusion"),
        ("model/objects.py", "pool_boxes"),
        ("model/splice.py", "plan_splice"),
    ],
)
def test_has_examples(file, name):
    tree = ast.parse((ROOT / "mg_llava" / file).read_text("utf-8"))
    found = next(node for node in tree.body if getattr(node, "name", None) == name)
    assert doctest.DocTestParser().get_examples(ast.get_docstring(found))


def test_a_wrong_example_fails():
    test = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3", {}, "sum", None, None)
    assert doctest.DocTestRunner(verbose=False).run(test, out=lambda text: None).failed == 1
