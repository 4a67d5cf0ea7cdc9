"""Does it answer its own records? What the evaluation wrote, for people."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

_LONGEST = 60
_SHOWN = 10


def read_answers(folder: Path) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """Returns the metrics and the rows of ``answers.csv`` in a folder of results."""
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    with (folder / "answers.csv").open(encoding="utf-8", newline="") as file:
        return metrics, list(csv.DictReader(file))


def shares_table(metrics: Mapping[str, Any], rows: list[dict[str, str]]) -> Table:
    """Returns exact and fuzzy shares of each part, with the 95 % interval of the exact one."""
    table = Table("records", title="Does it answer its own records?", title_justify="left")
    for name in ("questions", "exact", "95 % interval", "fuzzy"):
        table.add_column(name, justify="right")
    exact, fuzzy = (scores["groups"]["part"] for scores in (metrics, metrics["fuzzy"]))
    spread = metrics.get("uncertainty", {}).get("groups", {}).get("part", {})
    for part, share in exact.items():
        ends = spread.get(part) or {}
        interval = f"{ends['low']:.0%} to {ends['high']:.0%}" if ends.get("low") is not None else ""
        count = sum(row["part"] == part for row in rows)
        table.add_row(part, str(count), f"{share:.0%}", interval, f"{fuzzy[part]:.0%}")
    return table


def answers_table(rows: list[dict[str, str]]) -> Table:
    """Returns the first answers of each part, wanted beside given."""
    table = Table("records", "asked", "wanted", "given", "", title="Wanted and given", title_justify="left")
    for part in dict.fromkeys(row["part"] for row in rows):
        for row in [row for row in rows if row["part"] == part][:_SHOWN]:
            verdict = "exact" if row["exact"] == "1" else "alike" if row["fuzzy"] == "1" else "other"
            texts = (_short(row["asked"]), _short(row["wanted"]), _short(row["given"]))
            table.add_row(part, *(Text(text) for text in texts), verdict)
    return table


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
