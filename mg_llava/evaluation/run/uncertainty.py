"""How sure a benchmark's scores are: which questions belong together, and the standard errors that follow."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from mg_llava.evaluation.benchmarks.base import Benchmark
from mg_llava.evaluation.benchmarks.records import Prediction, Question
from xtuner.evaluation.statistics import clustered_mean, half_sampled


def find_clusters(benchmark: Benchmark, questions: Sequence[Question]) -> dict[str, str]:
    """Returns by question id the id of the first question that it shares a picture or a scored group with."""
    first: dict[str, str] = {}

    def root(name: str) -> str:
        while first[name] != name:
            # shorter ways next time
            first[name] = first[first[name]]
            name = first[name]
        return name

    holder: dict[tuple[str, Hashable], str] = {}
    order = {question.id: place for place, question in enumerate(questions)}
    for question in questions:
        first[question.id] = question.id
        shared: list[tuple[str, Hashable]] = [
            ("picture", picture.path or picture.encoded or picture.key) for picture in question.pictures
        ]
        shared.append(("group", benchmark.unit(question)))
        for name in shared:
            roots = sorted({root(holder.setdefault(name, question.id)), root(question.id)}, key=order.__getitem__)
            first[roots[-1]] = roots[0]
    return {question.id: root(question.id) for question in questions}


def uncertainties(
    benchmark: Benchmark, predictions: Sequence[Prediction], clusters: dict[str, str], scores: dict[str, Any]
) -> dict[str, Any]:
    """Returns the standard error and the 95 % interval of every number of `scores`, under the same names.

    Plain means have them from the spread of their questions; means of parts, F1 and sums of points from halves of the
    questions that are scored anew, see `half_sampled`.

    Args:
        benchmark: of the predictions.
        predictions: with verdicts.
        clusters: of its questions, see `find_clusters`.
        scores: what `Benchmark.score` gives for them.
    """
    if scores["overall"] is None:
        return {}
    if scores == Benchmark.score(benchmark, predictions):
        return _of_means(benchmark, predictions, clusters)
    scored = {one.id for one in predictions}
    strata = {question.id: repr(sorted(question.groups.items())) for question in benchmark.questions()}

    def score(ids: set[str]) -> dict[str, Any]:
        return benchmark.score([one for one in predictions if one.id in ids])

    return half_sampled(score, {key: clusters[key] for key in clusters if key in scored}, strata)


def _of_means(benchmark: Benchmark, predictions: Sequence[Prediction], clusters: dict[str, str]) -> dict[str, Any]:
    pairs = [(question, one.hit) for question, one in benchmark.pairs(predictions) if one.hit is not None]
    by_group: dict[tuple[str, str], list[tuple[float, str]]] = {}
    for question, hit in pairs:
        for axis_and_name in question.groups.items():
            by_group.setdefault(axis_and_name, []).append((hit, clusters[question.id]))
    groups: dict[str, dict[str, Any]] = {}
    for (axis, name), members in by_group.items():
        groups.setdefault(axis, {})[name] = clustered_mean(*zip(*members, strict=True)).to_json()
    hits = [(hit, clusters[question.id]) for question, hit in pairs]
    further = {
        name: clustered_mean(list(values.values()), [clusters[key] for key in values]).to_json()
        for name, values in benchmark.means(predictions).items()
        if values
    }
    return {"overall": clustered_mean(*zip(*hits, strict=True)).to_json(), "groups": groups, **further}
