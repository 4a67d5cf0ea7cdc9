"""What a check on a GPU has found: rows by stage, written to report.json and report.md after each one."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

STAGES = {
    "facts": "a. The machine",
    "correctness": "b. Same numbers as on the CPU",
    "engine": "c. ZeRO, precision, resuming",
    "mfu": "d. Model FLOP/s of a training step",
    "packed": "e. Packed against padded rows",
    "generation": "f. Generation",
    "quickstart": "g. The quickstart",
}
"""Stages in their order, with their headings."""

DONE, LEFT_OUT, FAILED, OUT_OF_MEMORY, OUT_OF_TIME = "done", "left out", "failed", "out of memory", "out of time"
SETTLED = (DONE, LEFT_OUT)
"""Outcomes that a later run does not try again."""


@dataclass
class Outcome:
    """What came of a row.

    Attributes:
        stage, row: which one.
        outcome: one of the words above.
        seconds: that it took.
        figures: what was measured, by column.
        said: why it failed or was left out, in one sentence.
    """

    stage: str
    row: str
    outcome: str
    seconds: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)
    said: str = ""


class Report:
    """The outcomes of one machine and setting, in a folder.

    Args:
        folder: of report.json and report.md.
        about: what the figures hold for: device, size, versions, command.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        self.folder, self.about = folder, dict(about)
        self.outcomes: dict[tuple[str, str], Outcome] = {}

    @classmethod
    def open(cls, folder: Path, about: Mapping[str, Any]) -> Report:
        """Goes on with the report that is in `folder`, or begins one.

        Raises:
            ValueError: it holds for another device, size or torch.
        """
        report = cls(folder, about)
        file = folder / "report.json"
        if not file.is_file():
            return report
        found = json.loads(file.read_text(encoding="utf-8"))
        for key in ("device", "tiny", "torch"):
            if found["about"].get(key) != about[key]:
                raise ValueError(
                    f"{file} is of {key} {found['about'].get(key)}, and this run of {about[key]}: give another --out."
                )
        for row in found["rows"]:
            report.outcomes[row["stage"], row["row"]] = Outcome(**row)
        return report

    def settled(self, stage: str) -> list[str]:
        """Returns the rows of a stage that need no other try."""
        return [row for (at, row), found in self.outcomes.items() if at == stage and found.outcome in SETTLED]

    def add(self, outcome: Outcome) -> None:
        """Takes a row's outcome and writes both files."""
        self.outcomes[outcome.stage, outcome.row] = outcome
        self.write()

    def write(self) -> None:
        """Writes both files; whoever reads them meanwhile sees the former ones."""
        rows = [asdict(found) for found in self.outcomes.values()]
        self._replace("report.json", json.dumps({"about": self.about, "rows": rows}, indent=1, ensure_ascii=False))
        self._replace("report.md", self.markdown())

    def _replace(self, name: str, text: str) -> None:
        temporary = self.folder / f".{name}"
        temporary.write_text(text + "\n", encoding="utf-8")
        os.replace(temporary, self.folder / name)

    def markdown(self) -> str:
        """Returns the report as text: what it holds for, then a table of each stage."""
        lines = [f"- {key}: {value}" for key, value in self.about.items()]
        for stage, heading in STAGES.items():
            found = [outcome for (at, _), outcome in self.outcomes.items() if at == stage]
            if found:
                lines += ["", f"## {heading}", "", *_table(found)]
        return "\n".join(lines)


def _table(found: Sequence[Outcome]) -> list[str]:
    columns = list(dict.fromkeys(key for outcome in found for key in outcome.figures))
    head = ["row", "outcome", "seconds", *columns]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for outcome in found:
        said = f"{outcome.outcome}: {outcome.said}" if outcome.said else outcome.outcome
        values = [outcome.row, said, f"{outcome.seconds:.1f}", *(_shown(outcome.figures.get(key)) for key in columns)]
        lines.append("| " + " | ".join(value.replace("|", "/") for value in values) + " |")
    return lines


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
