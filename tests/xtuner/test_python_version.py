"""Another Python is refused in one sentence, wherever it comes first: the program, an import, setup.py, the scripts."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from xtuner import NEWEST_PYTHON, OLDEST_PYTHON, python_refusal

ROOT = Path(__file__).parents[2]
OTHER = "import sys; sys.version_info = (3, 13, 0, 'final', 0); sys.argv = {argv!r}; {code}"


def run_as_other(argv: list[str], code: str) -> subprocess.CompletedProcess[str]:
    """Runs `code` with a Python that says that it is 3.13."""
    command = [sys.executable, "-c", OTHER.format(argv=argv, code=code)]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("version", "right"), [((3, 6, 15), 0), ((3, 9, 18), 0), ((3, 10, 0), 1), ((3, 12, 9), 1), ((3, 13, 0), 0)]
)
def test_which_are_right(version, right):
    said = python_refusal(version)
    assert (said is None) == bool(right)
    if said:
        assert "\n" not in said
        assert f"Python 3.{version[1]} is not supported, 3.10 to 3.12 are" in said


@pytest.mark.parametrize("argv", [["-m"], ["/somewhere/bin/xtuner"], [str(ROOT / "script" / "stage_info.py")]])
def test_a_program_of_ours_ends_with_the_sentence(argv):
    done = run_as_other(argv, "import xtuner")
    assert done.returncode == 1
    assert done.stderr.startswith("xtuner: Python 3.13 is not supported") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("package", ["xtuner", "mg_llava"])
def test_an_import_elsewhere_fails_with_it(package):
    done = run_as_other(["theirs.py"], f"import {package}")
    assert done.stderr.splitlines()[-1].startswith("ImportError: Python 3.13 is not supported")


def test_setup_says_it_when_it_runs_alone():
    done = run_as_other(["setup.py", "--version"], "import runpy; runpy.run_path('setup.py')")
    assert done.returncode == 1 and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "file",
    ["xtuner/__init__.py", "mg_llava/__init__.py", "setup.py", "script/stage_info.py", "tools/generate_boxes.py"],
)
def test_old_ones_can_read_what_refuses_them(file):
    ast.parse((ROOT / file).read_text(encoding="utf-8"), feature_version=(3, 6))


def test_docs_and_scripts_name_the_same_versions():
    first, last = (".".join(map(str, one)) for one in (OLDEST_PYTHON, NEWEST_PYTHON))
    assert f"Python {first}–{last}" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"Python {first}-{last}" in (ROOT / "script" / "common_env.sh").read_text(encoding="utf-8")


def test_the_environment_of_the_scripts_refuses_a_named_one(tmp_path):
    stub = tmp_path / "python-other"
    code = "import sys; sys.version_info = (3, 13, 0); sys.argv[0] = '-m'; import xtuner"
    stub.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{code}"\n', encoding="utf-8")
    stub.chmod(0o755)
    done = subprocess.run(
        ["bash", str(ROOT / "script" / "quickstart.sh")],
        env={**os.environ, "PYTHON": str(stub), "VENV": str(tmp_path / "venv")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("xtuner: Python 3.13 is not supported") and done.stderr.count("\n") == 1
    assert not (tmp_path / "venv").exists()
