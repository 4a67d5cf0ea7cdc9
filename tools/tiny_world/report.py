"""What quickstart.sh shows: a question to ask, and the table of accuracies.

python tools/tiny_world/report.py ask [--number N] --out FOLDER
python tools/tiny_world/report.py table --metrics FILE
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def _load(path: Path) -> Any:
    if not path.is_file():
        raise SystemExit(f"{path} is missing: script/quickstart.sh makes it.")
    return json.loads(path.read_text(encoding="utf-8"))


def accuracy_table(world: Path, metrics: Path) -> Table:
    """Returns the accuracy per kind of question beside what guessing gets.

    Args:
        world: The world's folder.
        metrics: metrics.json of the evaluation: 'overall' and 'groups' / 'kind', 0 to 1.
    """
    guessing = _load(world / "manifest.json")["majority_baseline"]
    found = _load(metrics)
    table = Table("kind of question", "right", "always the commonest answer", title="Held-out questions")
    for kind, share in found["groups"]["kind"].items():
        table.add_row(kind, f"{share:.1%}", f"{guessing[kind]:.1%}")
    table.add_row("all", f"{found['overall']:.1%}", f"{guessing['overall']:.1%}", style="bold")
    return table


def save_asked(world: Path, number: int, folder: Path) -> None:
    """Writes what asking test question ``number`` takes below ``folder``.

    image.txt, question.txt and expected.txt hold one line each; boxes.json has the picture's box record.
    """
    questions = _load(world / "data" / "test.json")
    if not 0 <= number < len(questions):
        raise SystemExit(f"--number is {number}, but {world} has questions 0 to {len(questions) - 1}.")
    asked = questions[number]
    record = next(r for r in _load(world / "data" / "boxes.json") if r["image"] == asked["image"])
    folder.mkdir(parents=True, exist_ok=True)
    image = world / "data" / asked["image"]
    texts = {"image": image.as_posix(), "question": asked["question"], "expected": asked["answer"]}
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text + "\n", encoding="utf-8")
    (folder / "boxes.json").write_text(json.dumps([record], indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Parses the command line and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    ask = commands.add_parser("ask", help="write what asking a test question takes")
    ask.add_argument("--number", type=int, default=0, help="number of the test question")
    ask.add_argument("--out", type=Path, required=True)
    table = commands.add_parser("table", help="print the table of accuracies")
    table.add_argument("--metrics", type=Path, required=True, help="metrics.json of the evaluation")
    for command in (ask, table):
        command.add_argument("--world", type=Path, default=Path("work_dirs/tiny_world"))
    arguments = parser.parse_args()
    if arguments.command == "ask":
        save_asked(arguments.world, arguments.number, arguments.out)
    else:
        Console().print(accuracy_table(arguments.world, arguments.metrics))


if __name__ == "__main__":
    main()
