"""``predictions.jsonl``: written as answers come, read again where an evaluation goes on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mg_llava.evaluation.benchmarks.records import Prediction
from xtuner.errors import XTunerError
from xtuner.json_values import JSONFault, parse_json, read_json
from xtuner.log import get_logger

_FIELDS = ("id", "prompt", "output", "parsed", "hit", "error")
_KINDS: dict[str, Any] = {"id": str, "prompt": str, "output": (str, type(None)), "hit": (int, float, type(None))}


class PredictionFiles:
    """A benchmark's predictions on disk, one JSON object a line; each process has a file of its own while it writes.

    Predictions of an earlier, cut-off evaluation are taken up only if it was the same one: `facts` (checkpoint,
    config, …) stand beside them in ``run.json``; those of another are moved aside.

    Args:
        folder: of the benchmark's results; made if absent.
        facts: what the predictions depend on, as JSON values.
        rank: of this process; 0 writes ``predictions.jsonl``, others ``predictions.rank<n>.jsonl``.
    """

    def __init__(self, folder: str | Path, facts: Mapping[str, Any], rank: int = 0) -> None:
        self.folder = Path(folder)
        self.path = self.folder / "predictions.jsonl"
        self.facts = json.loads(json.dumps(facts))
        self._own = self.path if rank == 0 else self.folder / f"predictions.rank{rank}.jsonl"

    def prepare(self) -> None:
        """Makes the folder ready; by rank 0, before any other process reads or writes there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        facts_file = self.folder / "run.json"
        if self.path.exists() and (not facts_file.exists() or not _holds(facts_file, self.facts)):
            get_logger().info(
                "%s holds answers of another checkpoint or config: it is moved aside and all questions are asked again",
                self.path,
            )
            self.merge()
            self.path.replace(self.folder / "predictions.previous.jsonl")
        facts_file.write_text(json.dumps(self.facts, indent=1) + "\n", encoding="utf-8")
        self.merge()

    def read(self) -> dict[str, Prediction]:
        """Returns the predictions in ``predictions.jsonl`` by id; a line that was cut off is not one."""
        return _read(self.path)

    def replace(self, predictions: Sequence[Prediction]) -> None:
        """Puts predictions in the place of those with their ids, the order kept; by rank 0, while no other writes."""
        read_anew = {prediction.id: prediction for prediction in predictions}
        self._write([read_anew.get(key, prediction) for key, prediction in self.read().items()])

    def add(self, predictions: Sequence[Prediction]) -> None:
        """Appends predictions of this process; they outlive it when this returns, even if it is killed."""
        with self._own.open("a", encoding="utf-8") as file:
            file.write("".join(map(_line, predictions)))
            # no fsync: it can take a second on a busy disk, and only guards against the machine's own failure
            file.flush()

    def merge(self, order: Sequence[str] = ()) -> dict[str, Prediction]:
        """Gathers the files of all processes in ``predictions.jsonl``; by rank 0, while no other writes.

        Args:
            order: ids in the order that the file shall have; others stay behind them.

        Returns:
            All predictions by id.
        """
        parts = sorted(self.folder.glob("predictions.rank*.jsonl"))
        found: dict[str, Prediction] = {}
        for path in (self.path, *parts):
            found |= _read(path)
        ordered = {key: found[key] for key in (*order, *found) if key in found}
        self._write(ordered.values())
        for path in parts:
            path.unlink()
        return ordered

    def _write(self, predictions: Iterable[Prediction]) -> None:
        partial = self.folder / "predictions.partial"
        partial.write_text("".join(map(_line, predictions)), encoding="utf-8")
        partial.replace(self.path)


def _holds(path: Path, facts: Any) -> bool:
    try:
        return bool(read_json(path) == facts)
    except XTunerError:
        return False


def _line(prediction: Prediction) -> str:
    return json.dumps(prediction.to_json(), ensure_ascii=False) + "\n"


def _read(path: Path) -> dict[str, Prediction]:
    if not path.exists():
        return {}
    done = {}
    # not splitlines: answers may hold line separators that JSON does not escape
    for line in path.read_bytes().split(b"\n"):
        try:
            row: Any = parse_json(line, whole_characters=False)
        except JSONFault:
            # the last line of a killed run may be cut off; its question is asked again
            continue
        values: dict[str, Any] = row if isinstance(row, dict) else {}
        if not all(isinstance(values.get(key), kinds) for key, kinds in _KINDS.items()):
            continue
        fields: dict[str, Any] = {key: values.get(key) for key in _FIELDS}
        prediction = Prediction(**fields)
        done[prediction.id] = prediction
    return done
