"""What a check of training data found."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Findings:
    """Sentences of the form ``"kind: what is meant"``, by which they are counted.

    Attributes:
        problems: faults: a training would not start, or not on this data.
        notes: what is left out or cut in training, and no fault.
        statistics: what the files hold: names and values of a table.
    """

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    statistics: list[tuple[str, str]] = field(default_factory=list)
