"""How sure a score is: standard errors and intervals where questions share a picture, and paired tests of two runs.

Sources: clustered standard errors of evaluations, Miller 2024 (arXiv 2411.00640); the half-sample bootstrap, Saigo,
Shao and Sitter 2001 (Survey Methodology 27); Wilson's interval at the effective sample size, Dean and Pagano 2015.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

_LEVEL = 0.95
_REPLICATES = 200
_RESAMPLES = 9999
_BATCH_CELLS = 2**24
"""Signs that a permutation test draws at a time: 128 MiB of them."""


@dataclass(frozen=True)
class Uncertainty:
    """How far a score may be from that of endlessly many such questions.

    Attributes:
        standard_error: of the score; None where a single cluster tells nothing.
        low: lower end of the 95 % interval.
        high: upper end of the 95 % interval.
        clusters: questions, those that share a picture or a group counted once.
    """

    standard_error: float | None
    low: float | None
    high: float | None
    clusters: int

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON values."""
        return asdict(self)


def clustered_mean(values: Sequence[float], clusters: Sequence[Hashable]) -> Uncertainty:
    """Returns the uncertainty of the mean of `values`.

    Args:
        values: one a question, 0–1.
        clusters: what each question belongs to; questions of a cluster may be as alike as they want.
    """
    numbers = np.asarray(values, np.float64)
    _, cluster = np.unique([str(name) for name in clusters], return_inverse=True)
    count = int(cluster.max()) + 1
    if count < 2:
        return Uncertainty(None, None, None, count)
    sums = np.bincount(cluster, numbers - numbers.mean(), count)
    error = float(np.sqrt((sums**2).sum() * count / (count - 1)) / len(numbers))
    return _interval(float(numbers.mean()), error, count)


def half_sampled(
    score: Callable[[set[str]], Mapping[str, Any]],
    clusters: Mapping[str, str],
    strata: Mapping[str, str],
    replicates: int = _REPLICATES,
) -> dict[str, Any]:
    """Returns the uncertainty of every number of a score that is no plain mean, such as a mean of parts or an F1.

    The score is made anew from random halves of the clusters, drawn without replacement within each stratum: the
    variance of such halves is that of the whole's sampling, as in a bootstrap, and no question appears twice.

    Args:
        score: makes the scores, nested mappings of numbers, from the ids that it may use.
        clusters: cluster by id.
        strata: by id, which part of the score it counts in; parts keep their sizes.
        replicates: how many halves; the standard errors are accurate to about 1 / √(2 · replicates).
    """
    members: dict[str, list[str]] = {}
    for key, cluster in clusters.items():
        members.setdefault(cluster, []).append(key)
    parts: dict[str, list[str]] = {}
    for cluster, keys in members.items():
        parts.setdefault(strata[keys[0]], []).append(cluster)
    rng = np.random.default_rng(0)
    whole = score(set(clusters))
    scores = []
    for _ in range(replicates):
        half: list[str] = []
        for names in parts.values():
            # an odd one out is in every second half
            size = (len(names) + int(rng.integers(2))) // 2
            half += [names[place] for place in rng.choice(len(names), size, replace=False)]
        if half:
            scores.append(score({key for cluster in half for key in members[cluster]}))
    return _spread(whole, scores, len(members))


def _spread(whole: Any, scores: Sequence[Any], clusters: int) -> Any:
    if isinstance(whole, Mapping):
        return {
            key: found
            for key, value in whole.items()
            if (found := _spread(value, [one.get(key) for one in scores if one is not None], clusters)) is not None
        }
    if isinstance(whole, bool) or not isinstance(whole, float):
        return None
    numbers = [value for value in scores if isinstance(value, (int, float))]
    if clusters < 2 or len(numbers) < 2:
        return Uncertainty(None, None, None, clusters).to_json()
    error = float(np.sqrt(np.mean((np.asarray(numbers) - whole) ** 2)))
    return _interval(whole, error, clusters).to_json()


def _interval(value: float, error: float, clusters: int) -> Uncertainty:
    """Wilson's interval at the number of independent questions that gives such an error; else Student's."""
    # a score that can pass 1 may vary there too
    if not 0 <= value <= 1 or (error > 0 and value in (0.0, 1.0)):
        reach = float(stats.t.ppf((1 + _LEVEL) / 2, clusters - 1)) * error
        return Uncertainty(error, value - reach, value + reach, clusters)
    # all right or all wrong: each cluster counts as one independent question
    size = value * (1 - value) / error**2 if error > 0 else clusters
    z = float(stats.norm.ppf((1 + _LEVEL) / 2))
    middle = (value + z**2 / (2 * size)) / (1 + z**2 / size)
    reach = z / (1 + z**2 / size) * float(np.sqrt(value * (1 - value) / size + z**2 / (4 * size**2)))
    # rounding must not put the score itself outside
    return Uncertainty(error, max(0.0, min(middle - reach, value)), min(1.0, max(middle + reach, value)), clusters)


@dataclass(frozen=True)
class PairedTest:
    """Whether two runs on the same questions differ by more than chance.

    Attributes:
        difference: mean of B's hits minus A's.
        standard_error: of it; None where there is a single cluster.
        p_value: how often chance alone makes a difference at least so large; 1 where nothing differs.
        method: how it was found.
    """

    difference: float
    standard_error: float | None
    p_value: float
    method: str


def paired_test(differences: Sequence[float], clusters: Sequence[Hashable]) -> PairedTest:
    """Tests whether paired hits differ: exactly where single questions flip, else by swapping clusters.

    Args:
        differences: B's hit minus A's, one a question.
        clusters: what each question belongs to; a cluster is swapped as a whole.
    """
    return weighted_test([(differences, clusters)])


def weighted_test(parts: Sequence[tuple[Sequence[float], Sequence[Hashable]]]) -> PairedTest:
    """Tests the mean over `parts` of their mean differences; each part counts the same.

    Args:
        parts: differences and clusters of each, as `paired_test` takes them; none of them empty.
    """
    sums, variance, single = [], 0.0, False
    for differences, clusters in parts:
        numbers = np.asarray(differences, np.float64)
        _, cluster = np.unique([str(name) for name in clusters], return_inverse=True)
        count = int(cluster.max()) + 1
        weight = len(parts) * len(numbers)
        sums.append(np.bincount(cluster, numbers, count) / weight)
        single |= count < 2
        if count > 1:
            centred = np.bincount(cluster, numbers - numbers.mean(), count) / weight
            variance += float((centred**2).sum()) * count / (count - 1)
    swapped = np.concatenate(sums)
    difference = float(swapped.sum())
    # swapping A and B where they are equal changes nothing
    swapped = swapped[~np.isclose(swapped, 0.0, atol=1e-12)]
    p_value, method = _swap(swapped)
    return PairedTest(difference, None if single else float(np.sqrt(variance)), p_value, method)


def _swap(sums: np.ndarray) -> tuple[float, str]:
    """The two-sided p value of a sum under swaps of sign, and how it was found."""
    if not len(sums):
        return 1.0, "nothing differs"
    if np.allclose(np.abs(sums), abs(sums[0]), rtol=1e-9):
        # McNemar's test: gains and losses of the same size
        return float(stats.binomtest(int((sums > 0).sum()), len(sums)).pvalue), "exact binomial (McNemar)"
    found = stats.permutation_test(
        (sums,),
        np.sum,
        permutation_type="samples",
        vectorized=True,
        n_resamples=_RESAMPLES,
        batch=max(1, _BATCH_CELLS // len(sums)),
        rng=np.random.default_rng(0),
    )
    return float(found.pvalue), "permutation of clusters"
