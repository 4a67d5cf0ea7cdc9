"""What hostile or broken inputs cost: each row attacks one door and says what happened.

Usage: ``python tools/benchmarks/abuse.py [ROW ...] [--seed 0]``; without names all rows run.

A row is a function decorated with `row`: it makes its inputs in an empty folder and returns what was found and whether
that is within the bound. The command ends with 1 where a bound is broken.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import hostile_clients
from own_process import in_own_process
from PIL import Image
from rich.console import Console
from rich.table import Table


class Outcome(NamedTuple):
    """What a row found, and whether it is within its bound."""

    found: str
    within: bool


@dataclass(frozen=True)
class Row:
    """One attack.

    Attributes:
        attack: for the table.
        bound: what must hold, for the table.
        run: takes an empty folder and a seed.
    """

    attack: str
    bound: str
    run: Callable[[Path, int], Outcome]


ROWS: dict[str, Row] = {}


def row(name: str, attack: str, bound: str) -> Callable[[Callable[[Path, int], Outcome]], None]:
    """Adds a function to the table under `name`."""

    def add(run: Callable[[Path, int], Outcome]) -> None:
        ROWS[name] = Row(attack, bound, run)

    return add


def _imports() -> None:
    import mg_llava.pictures.preprocess  # noqa: F401  # what is measured is the picture, not the import


def _preprocess(path: str, encoder: str) -> tuple[str, None]:
    import resource

    from mg_llava.pictures.preprocess import ImageProcessor

    processor = ImageProcessor(encoder, 768)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    processor.pixels(processor.open(path))
    # the peak, not what stays: in KiB on Linux
    return str((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024), None


@row("tall-picture", "1 x 20,000 PNG", "<= +50 MB, <= 0.5 s")
def _tall_picture(folder: Path, seed: int) -> Outcome:
    statistics = {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28], "do_center_crop": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(statistics))
    picture = folder / "tall.png"
    Image.new("RGB", (1, 20_000), (200, 10, seed % 256)).save(picture, optimize=True)
    cost = in_own_process(_imports, _preprocess, str(picture), str(folder))
    peak = int(cost.result) / 1e6
    found = f"{picture.stat().st_size} bytes: +{peak:.0f} MB, {cost.seconds:.2f} s ({cost.cpu_seconds:.2f} s of a core)"
    return Outcome(found, peak <= 50 and cost.seconds <= 0.5)


@row("poisoned-request", "others' answers failed by poisoned requests", "0")
def _poisoned(folder: Path, seed: int) -> Outcome:
    return Outcome(*hostile_clients.poisoned(folder))


@row("departed-clients", "4 departed clients with 250,000 boxes each, then 16 clients 30 s", ">= 90 % of without them")
def _departed(folder: Path, seed: int) -> Outcome:
    return Outcome(*hostile_clients.departed(folder))


@row("crowd", "16 clients 60 s", "memory flat, only 200 and 429")
def _crowd(folder: Path, seed: int) -> Outcome:
    return Outcome(*hostile_clients.crowded(folder))


_INPUTS = {
    "records": 25_000,
    "box_file": 5_000,
    "benchmark": 15_000,
    "table": 5_000,
    "config": 5_000,
    "picture": 25_000,
    "request": 20_000,
    "override": 10_000,
}


def _crashes(part: tuple[str, range]) -> list[str]:
    import logging
    import warnings

    from fuzzing import crash

    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")
    door, seeds = part
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XTUNER_CACHE"] = folder
        return [found for seed in seeds if (found := crash(door, seed, Path(folder)))]


@row("fuzz", "fuzzed inputs", "0 crashes of 110,000")
def _fuzzed(folder: Path, seed: int) -> Outcome:
    parts = [
        (door, range(seed + start, seed + min(start + 1000, count)))
        for door, count in _INPUTS.items()
        for start in range(0, count, 1000)
    ]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        crashes = [found for part in pool.map(_crashes, parts, chunksize=1) for found in part]
    counts = ", ".join(f"{door} {count:,}" for door, count in _INPUTS.items())
    shown = "".join(f"\n{found}" for found in crashes[:5])
    return Outcome(f"{len(crashes)} of {sum(_INPUTS.values()):,} ({counts}){shown}", not crashes)


def main() -> int:
    """Runs the rows and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)} (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of whatever is random (default: 0)")
    args = parser.parse_args()
    if unknown := [name for name in args.rows if name not in ROWS]:
        parser.error(f"no such row: {', '.join(unknown)}; there are: {', '.join(ROWS)}")
    table = Table("attack", "bound", "found", "within")
    within = True
    for name in args.rows or ROWS:
        with tempfile.TemporaryDirectory() as folder:
            outcome = ROWS[name].run(Path(folder), args.seed)
        within &= outcome.within
        table.add_row(ROWS[name].attack, ROWS[name].bound, outcome.found, "yes" if outcome.within else "NO")
    Console().print(table)
    return 0 if within else 1


if __name__ == "__main__":
    raise SystemExit(main())
