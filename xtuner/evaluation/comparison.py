"""Two evaluations side by side: scores, and the questions that one got right and the other did not."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xtuner.errors import XTunerError
from xtuner.evaluation.statistics import PairedTest, paired_test, weighted_test
from xtuner.json_values import JSONFault, parse_json, read_json

_CLUSTERS = "clusters.json"
_FIELDS = {"id", "prompt", "output", "hit"}


@dataclass(frozen=True)
class Flip:
    """A question whose hit differs between two runs.

    Attributes:
        id: of the question.
        prompt: what was asked.
        outputs: the answers of A and B; None where one gave none.
        hits: how right they are, 0–1.
    """

    id: str
    prompt: str
    outputs: tuple[str | None, str | None]
    hits: tuple[float, float]


@dataclass(frozen=True)
class BenchmarkComparison:
    """One benchmark of two runs.

    Attributes:
        name: of the benchmark.
        scores: ``overall`` of A and B, 0–1; None where not scored.
        shared: questions that both answered.
        flips: those of them whose hits differ.
        differences: B's hit minus A's, of each question that both answered and that is scored.
        clusters: what each of these belongs to: questions that share a picture or a scored group have the same.
        test: whether the hits differ by more than chance; None where no question is scored in both.
    """

    name: str
    scores: tuple[float | None, float | None]
    shared: int
    flips: list[Flip]
    differences: list[float]
    clusters: list[str]
    test: PairedTest | None

    @property
    def gained(self) -> int:
        """Questions that B answers better."""
        return sum(flip.hits[1] > flip.hits[0] for flip in self.flips)

    @property
    def lost(self) -> int:
        """Questions that A answers better."""
        return len(self.flips) - self.gained


def compare(first: str | Path, second: str | Path) -> list[BenchmarkComparison]:
    """Compares the benchmarks that two folders of results have in common.

    Args:
        first: A: a run's folder, with ``<benchmark>/metrics.json`` and ``predictions.jsonl`` below it.
        second: B.

    Raises:
        XTunerError: they have no benchmark in common.
    """
    found = [{path.parent.name: path.parent for path in Path(run).glob("*/metrics.json")} for run in (first, second)]
    shared = sorted(found[0].keys() & found[1].keys())
    if not shared:
        names = [", ".join(sorted(one)) or "none" for one in found]
        raise XTunerError(
            f"'{first}' and '{second}' have no benchmark in common: found {names[0]} and {names[1]}. Expected folders "
            "that hold <benchmark>/metrics.json, which `xtuner test --work-dir` writes."
        )
    return [_compare(name, found[0][name], found[1][name]) for name in shared]


def overall_test(comparisons: Sequence[BenchmarkComparison]) -> PairedTest | None:
    """Returns the paired test of the mean over the benchmarks of their mean differences; each counts the same."""
    parts = [(one.differences, one.clusters) for one in comparisons if one.differences]
    return weighted_test(parts) if parts else None


def write_clusters(folder: str | Path, clusters: Mapping[str, str]) -> None:
    """Writes which questions share a picture or a scored group, for `compare`.

    Args:
        folder: of a benchmark's results.
        clusters: a name of what it belongs to by question id; those that stand alone are not written.
    """
    members: dict[str, list[str]] = {}
    for key, cluster in clusters.items():
        members.setdefault(cluster, []).append(key)
    shared = [keys for keys in members.values() if len(keys) > 1]
    (Path(folder) / _CLUSTERS).write_text(json.dumps(shared, ensure_ascii=False) + "\n", encoding="utf-8")


def _read_clusters(*folders: Path) -> dict[str, str]:
    """A name of its cluster by question id, for all that do not stand alone."""
    for folder in folders:
        path = folder / _CLUSTERS
        if path.exists():
            lists = read_json(path, list, "run `xtuner test` again.")
            return {key: f"shared {number}" for number, keys in enumerate(lists) for key in keys}
    return {}


def _compare(name: str, first: Path, second: Path) -> BenchmarkComparison:
    a, b = _predictions(first), _predictions(second)
    shared = [key for key in a if key in b]
    flips = [
        Flip(key, a[key]["prompt"], (a[key]["output"], b[key]["output"]), (a[key]["hit"], b[key]["hit"]))
        for key in shared
        if None not in (a[key]["hit"], b[key]["hit"]) and a[key]["hit"] != b[key]["hit"]
    ]
    metrics = [read_json(folder / "metrics.json", dict, "run `xtuner test` again.") for folder in (first, second)]
    scores = [one.get("overall") for one in metrics]
    scored = [key for key in shared if None not in (a[key]["hit"], b[key]["hit"])]
    differences = [b[key]["hit"] - a[key]["hit"] for key in scored]
    belongs = _read_clusters(first, second)
    clusters = [belongs.get(key, f"alone {key}") for key in scored]
    test = paired_test(differences, clusters) if scored else None
    return BenchmarkComparison(name, (scores[0], scores[1]), len(shared), flips, differences, clusters, test)


def _predictions(folder: Path) -> dict[str, dict[str, Any]]:
    path = folder / "predictions.jsonl"
    if not path.exists():
        raise XTunerError(
            f"'{path}' is missing: the comparison needs the benchmark's answers. Run `xtuner test` again."
        )
    rows = {}
    # not splitlines: answers may hold line separators that JSON does not escape
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if line.strip():
            try:
                row = parse_json(line, whole_characters=False)
            except JSONFault as error:
                raise XTunerError(
                    f"'{path}' line {number} is not JSON; perhaps the run was killed. Run `xtuner test` again."
                ) from error
            if not isinstance(row, dict) or not row.keys() >= _FIELDS:
                raise XTunerError(f"'{path}' line {number} is no prediction. Run `xtuner test` again.")
            rows[str(row["id"])] = row
    return rows
