"""How much scores vary from one seed to another, where answers are drawn."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean, stdev
from typing import Any


def spread(results: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Returns what the runs of one benchmark have together.

    Args:
        results: what ``metrics.json`` holds, by seed.

    Returns:
        ``overall``: mean over the seeds, None where a run has none; ``standard_deviation`` of single runs, None for one
        seed; ``seeds``: each one's score; ``num_questions`` of a run.
    """
    scores = {seed: metrics["overall"] for seed, metrics in results.items()}
    known = [score for score in scores.values() if score is not None]
    complete = len(known) == len(scores)
    return {
        "overall": fmean(known) if complete else None,
        "standard_deviation": stdev(known) if complete and len(known) > 1 else None,
        "seeds": {str(seed): score for seed, score in scores.items()},
        "num_questions": next(iter(results.values()))["num_questions"],
    }


def write_spread(found: Mapping[str, Any], path: Path) -> None:
    """Writes `spread`'s answer as JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
