"""Opening a box file and looking pictures up: `json.load` and a dict, against `BoxStore`.

Usage: ``python tools/benchmarks/box_files.py [--records 100000] [--large 1300000] [--boxes 20] [--large-boxes 20]``

Each side runs in a process of its own, as a rank does: it opens the file and looks 100 pictures up. Times and memory
are over the imports. The index of `BoxStore` is made first, once per file, and its time is told too. `--large` repeats
our side with more records, to show that it stays as it is; 0 leaves it out (the file has 2 GB, and its index takes
minutes; opening and looking up depend on the number of records, so fewer `--large-boxes` show the same sooner).
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

from own_process import in_own_process
from rich.console import Console

LOOKUPS = 100


def write_box_file(path: Path, records: int, boxes: int) -> None:
    """Writes a list of records, a line each."""
    # numbers as detectors write them; a few kinds of records, so that writing is fast
    kinds = []
    for kind in range(50):
        values = [[(7 * kind + 13 * box + place * 1.37) % 640 + 0.123456 for place in range(4)] for box in range(boxes)]
        content = {
            "boxes": values,
            "labels": [f"thing {box % 17}" for box in range(boxes)],
            "scores": [0.9 - box / 100 for box in range(boxes)],
        }
        kinds.append(json.dumps(content)[1:])
    with open(path, "w", encoding="utf-8") as file:
        file.write("[")
        for number in range(records):
            file.write("" if number == 0 else ",\n")
            file.write(f'{{"image": "{name(number)}", {kinds[number % len(kinds)]}')
        file.write("]")


def name(number: int) -> str:
    """Returns the path of picture `number`."""
    return f"coco/train2017/{number:012d}.jpg"


def no_imports() -> None:
    """The usual side needs the standard library only."""


def import_ours() -> None:
    """Imports what our side needs."""
    import pandas  # noqa: F401  # pyarrow imports it with its first conversion

    import mg_llava.boxes.store  # noqa: F401


def usual(path: str, records: int) -> tuple[int, object]:
    """Parses the whole file into a dict by picture."""
    with open(path, encoding="utf-8") as file:
        found = {record["image"]: record for record in json.load(file)}
    return sum(len(found[name(number)]["boxes"]) for number in range(0, records, records // LOOKUPS)), found


def ours(path: str, records: int) -> tuple[int, object]:
    """Opens the index."""
    from mg_llava.boxes.store import BoxStore

    store = BoxStore(path)
    return sum(len(store.lookup(name(number)).labels) for number in range(0, records, records // LOOKUPS)), store


def measure_ours(path: Path, records: int, boxes: int, out: Console) -> int:
    """Writes a file, makes its index, and measures our side; returns the boxes that it found."""
    write_box_file(path, records, boxes)
    from mg_llava.boxes.index import box_index_folder

    started = time.perf_counter()
    box_index_folder(str(path))
    made = time.perf_counter() - started
    cost = in_own_process(import_ours, ours, str(path), records)
    size = path.stat().st_size / 1e6
    out.print(
        f"{records:,} records x {boxes} boxes ({size:,.0f} MB): here {cost}; the index was made once in {made:.1f} s",
        soft_wrap=True,
    )
    return cost.result


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--large", type=int, default=1_300_000)
    parser.add_argument("--boxes", type=int, default=20)
    parser.add_argument("--large-boxes", type=int, help="boxes of a record of --large (default: --boxes)")
    args = parser.parse_args()
    out = Console(highlight=False)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XTUNER_CACHE"] = f"{folder}/cache"
        path = Path(folder) / "boxes.json"
        found = measure_ours(path, args.records, args.boxes, out)
        cost = in_own_process(no_imports, usual, str(path), args.records)
        out.print(f"{args.records:,} records: json.load and a dict {cost}", soft_wrap=True)
        if cost.result != found:
            raise SystemExit("the two sides find different boxes")
        if args.large:
            measure_ours(path, args.large, args.large_boxes or args.boxes, out)


if __name__ == "__main__":
    main()
