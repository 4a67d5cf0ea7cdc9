"""``xtuner check-dataset CONFIG``: finds every fault of the training data in one pass."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console

from xtuner.config import load_config, parse_overrides
from xtuner.data.records.findings import Findings
from xtuner.errors import counted
from xtuner.registry import build, resolve_type
from xtuner.tools.browse_dataset import write_page
from xtuner.tools.support.arguments import add_cfg_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("config", help="path or name of the config whose train_dataset is checked")
    parser.add_argument(
        "-n", "--show", type=int, default=10, help="number of examples to show of each kind (default: 10)"
    )
    parser.add_argument(
        "--fast", action="store_true", help="only decode the pictures, do not preprocess them as training does"
    )
    parser.add_argument(
        "--html", metavar="FOLDER", help="also write a page as browse-dataset does, with the statistics"
    )
    add_cfg_options(parser)


def run(args: argparse.Namespace) -> int:
    """Prints statistics, the problems by kind, then what training leaves out; returns 1 if there are problems."""
    node = load_config(args.config, parse_overrides(args.cfg_options)).train_dataset
    dataset_class: Any = resolve_type(node["type"])
    found: Findings = dataset_class.check_records(node, fast=args.fast)
    out = Console(soft_wrap=True, markup=False, highlight=False)
    print_statistics(found.statistics, out)
    counts = _print(found.problems, args.show, out)
    if found.notes:
        out.print("Not a fault, but left out, cut or read as text:")
        _print(found.notes, args.show, out)
    if not found.problems:
        out.print("The training data has no problems.")
    else:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in counts.items())
        told = f": {kinds}" if len(counts) > 1 else ""
        out.print(f"{counted(len(found.problems), 'problems')}{told}.", style="bold red")
    if args.html is not None:
        # samples can be made of data without faults only
        dataset: Any = None if found.problems else build(node)
        numbers = () if dataset is None else range(min(len(dataset), args.show))
        page = write_page(args.config, Path(args.html), dataset, numbers, found)
        out.print(f"Open {page}")
    return 1 if found.problems else 0


def print_statistics(rows: Iterable[tuple[str, str]], out: Console) -> None:
    """Prints what the files hold, one line each."""
    told = list(rows)
    width = max((len(name) for name, _ in told), default=0)
    for name, value in told:
        out.print(f"{name:<{width}}  {value}")


def _print(sentences: Iterable[str], shown: int, out: Console) -> dict[str, int]:
    """Prints the first `shown` of each kind; returns how many there are of each."""
    kinds = by_kind(sentences)
    for kind, found in kinds.items():
        out.print(f"{kind}: {len(found):,}", style="bold")
        for sentence in found[:shown]:
            out.print(f"  - {sentence}")
        if len(found) > shown:
            out.print(f"  ... and {len(found) - shown:,} more (--show {len(found)} shows them)")
    return {kind: len(found) for kind, found in kinds.items()}


def by_kind(problems: Iterable[str]) -> dict[str, list[str]]:
    """Groups ``"kind: sentence"`` by kind, the most frequent first; without a kind it is "other"."""
    kinds: dict[str, list[str]] = {}
    for problem in problems:
        kind, colon, sentence = problem.partition(": ")
        kinds.setdefault(kind if colon else "other", []).append(sentence if colon else problem)
    return dict(sorted(kinds.items(), key=lambda entry: -len(entry[1])))
