"""``xtuner list-dataset-format``: the formats of records that training reads."""

from __future__ import annotations

import argparse
import json

from rich.console import Console

from xtuner.data.records.formats import FORMATS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds nothing: the command has no arguments."""


def run(args: argparse.Namespace) -> int:
    """Prints each format with how it is told and an example."""
    out = Console(soft_wrap=True, markup=False, highlight=False)
    out.print(
        "Write records as a JSON array or a JSONL file. Each record may have its own format. "
        "Paths are relative to image_folder."
    )
    for one in FORMATS:
        out.print(f"\n{one.name}", style="bold", end="")
        out.print(f": {one.known_by}")
        out.print(json.dumps(one.example, indent=2))
    return 0
