"""``xtuner version``: what to name in a report of a problem."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import sys

import xtuner

HELP = "Show the versions of xtuner, Python and the libraries that matter to a run."

LIBRARIES = (
    "torch",
    "torchvision",
    "transformers",
    "mmengine",
    "deepspeed",
    "peft",
    "open_clip_torch",
    "pyarrow",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments: none."""


def run(args: argparse.Namespace) -> int:
    """Writes one ``name version`` a line; imports no library, so that it also works where one is broken."""
    rows = library_versions()
    sys.stdout.write("".join(f"{name:<16} {version or 'not installed'}\n" for name, version in rows.items()))
    return 0


def library_versions() -> dict[str, str | None]:
    """Returns the versions of xtuner, Python and `LIBRARIES`; None for one that is not installed."""
    rows: dict[str, str | None] = {"xtuner": xtuner.__version__, "python": platform.python_version()}
    for library in LIBRARIES:
        try:
            rows[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            rows[library] = None
    return rows
