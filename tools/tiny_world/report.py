"""What quickstart.sh shows: a question to ask, the table of accuracies, the picture with its boxes drawn.

    python tools/tiny_world/report.py question --world FOLDER [--number N]
    python tools/tiny_world/report.py table --world FOLDER --metrics FILE
    python tools/tiny_world/report.py picture --world FOLDER [--number N] --out FILE
    python tools/tiny_world/report.py lookup --world FOLDER [--number N] --out FILE
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from rich.console import Console
from rich.table import Table

_SCALE = 4
_BOX_COLOUR = (255, 255, 255)


def _load(path: Path) -> Any:
    if not path.is_file():
        raise SystemExit(f"{path} is missing: run tools/tiny_world/make.py and the steps of script/quickstart.sh first.")
    return json.loads(path.read_text(encoding="utf-8"))


def _question(world: Path, number: int) -> dict[str, str]:
    questions = _load(world / "data" / "test.json")
    if not 0 <= number < len(questions):
        raise SystemExit(f"--number is {number}, but {world} has questions 0 to {len(questions) - 1}.")
    return questions[number]


def _box_record(world: Path, image: str) -> dict[str, Any]:
    return next(record for record in _load(world / "data" / "boxes.json") if record["image"] == image)


def draw_boxes(picture: Image.Image, record: dict[str, Any]) -> Image.Image:
    """Returns the picture four times as large with the record's boxes (xyxy, pixels) and labels drawn."""
    drawn = picture.convert("RGB").resize((picture.width * _SCALE, picture.height * _SCALE), Image.NEAREST)
    pen = ImageDraw.Draw(drawn)
    for box, label, score in zip(record["boxes"], record["labels"], record["scores"], strict=True):
        left, top, right, bottom = (value * _SCALE for value in box)
        pen.rectangle((left, top, right, bottom), outline=_BOX_COLOUR)
        pen.text((left, top - 12 if top >= 12 else bottom + 1), f"{label} {score:.2f}", fill=_BOX_COLOUR)
    return drawn


def accuracy_table(world: Path, predictions: Path, metrics: Path) -> Table:
    """Returns accuracy per kind of question beside what guessing gets.

    Args:
        world: The world's folder.
        predictions: predictions.jsonl of the evaluation; each line has id and correct.
        metrics: metrics.json with 'overall', 0 to 1.
    """
    manifest, questions = _load(world / "manifest.json"), _load(world / "data" / "test.json")
    kinds = {question["id"]: question["kind"] for question in questions}
    right: dict[str, list[bool]] = defaultdict(list)
    for line in predictions.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        right[kinds[entry["id"]]].append(bool(entry["correct"]))
    table = Table("kind of question", "questions", "right", "guessing", title="Held-out questions")
    guessing = manifest["majority_baseline"]
    for kind, marks in right.items():
        table.add_row(kind, str(len(marks)), f"{sum(marks) / len(marks):.1%}", f"{guessing[kind]:.1%}")
    overall = _load(metrics)["overall"]
    table.add_row("all", str(len(questions)), f"{overall:.1%}", f"{guessing['overall']:.1%}", style="bold")
    return table
