"""``predictions.jsonl``: written as answers come, read again where an evaluation goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from mg_llava.evaluation.base import Prediction
from xtuner.log import get_logger

_FIELDS = ("id", "prompt", "output", "parsed", "hit")


class PredictionFile:
    """A benchmark's predictions on disk, one JSON object a line.

    Predictions of an earlier, cut-off evaluation are taken up only if it was the same one: `facts` (checkpoint, config, …)
    stand beside them in ``run.json``; those of another are moved aside to ``predictions.previous.jsonl``. Use as a context.

    Args:
        folder: of the benchmark's results; made if absent.
        facts: what the predictions depend on, as JSON values.
    """

    def __init__(self, folder: str | Path, facts: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self.path = self.folder / "predictions.jsonl"
        self.facts = json.loads(json.dumps(facts))
        self.done: dict[str, Prediction] = {}

    def __enter__(self) -> PredictionFile:
        self.folder.mkdir(parents=True, exist_ok=True)
        facts_file = self.folder / "run.json"
        if self.path.exists():
            known = json.loads(facts_file.read_text(encoding="utf-8")) if facts_file.exists() else None
            if known == self.facts:
                self.done = _read(self.path)
            else:
                get_logger().info("'%s' is of another checkpoint or config: moved aside, asking anew.", self.path)
                self.path.replace(self.path.with_name("predictions.previous.jsonl"))
        facts_file.write_text(json.dumps(self.facts, indent=1) + "\n", encoding="utf-8")
        # rewritten, so that a half line of a killed run is gone
        lines = [_line(prediction) for prediction in self.done.values()]
        partial = self.path.with_suffix(".partial")
        partial.write_text("".join(lines), encoding="utf-8")
        partial.replace(self.path)
        self._file = self.path.open("a", encoding="utf-8")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, predictions: list[Prediction]) -> None:
        """Appends predictions; they are on disk when this returns."""
        for prediction in predictions:
            self.done[prediction.id] = prediction
            self._file.write(_line(prediction))
        self._file.flush()
        os.fsync(self._file.fileno())


def _line(prediction: Prediction) -> str:
    return json.dumps(prediction.to_json(), ensure_ascii=False) + "\n"


def _read(path: Path) -> dict[str, Prediction]:
    done = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            # only the last line of a killed run can be cut off; its question is asked again
            continue
        # an answer that a missing picture prevented is tried again
        if all(key in row for key in _FIELDS) and row["output"] is not None:
            done[row["id"]] = Prediction(**{key: row[key] for key in _FIELDS})
    return done
