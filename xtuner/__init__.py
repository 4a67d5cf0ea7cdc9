"""A framework that assembles vision-language models from Python configs and trains them.

Other versions of Python come as far as this file, so it does without what an old one lacks.
"""

import os
import sys

__version__ = "0.1.0"

OLDEST_PYTHON = (3, 10)
NEWEST_PYTHON = (3, 12)
"""Versions that the tests have run on. Others are refused: their faults would show in the middle of a run."""

_TREE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def python_refusal(version: "tuple[int, ...]" = sys.version_info[:3]) -> "str | None":
    """Returns the sentence that refuses a version of Python; None where it is one of ours."""
    if OLDEST_PYTHON <= tuple(version[:2]) <= NEWEST_PYTHON:
        return None
    found, oldest, newest = (".".join(map(str, one[:2])) for one in (version, OLDEST_PYTHON, NEWEST_PYTHON))
    return (
        f"Python {found} is not supported, {oldest} to {newest} are: make a virtual environment with one of these "
        f"(python{newest} -m venv .venv) and install there."
    )


def _check_python() -> None:
    """Ends a program of ours with one sentence where Python is another; elsewhere the import fails with it."""
    told = python_refusal()
    if told is None:
        return
    program = sys.argv[0] if sys.argv else ""
    ours = os.path.basename(program) in ("xtuner", "-m")
    in_tree = os.path.exists(os.path.join(_TREE, "setup.py")) and os.path.abspath(program).startswith(_TREE + os.sep)
    if ours or (in_tree and os.path.isfile(program)):
        sys.exit(f"xtuner: {told}")
    raise ImportError(told)


_check_python()
