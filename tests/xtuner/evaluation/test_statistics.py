"""Standard errors, intervals and paired tests: by hand, by scipy, and held to their promise on drawn data."""

from __future__ import annotations

import math
from statistics import fmean

import numpy as np
import pytest
from scipy import stats

from xtuner.evaluation.statistics import clustered_mean, half_sampled, paired_test, weighted_test


class TestClusteredMean:
    def test_single_questions_by_hand(self) -> None:
        # mean 3/4, squared deviations 3 · 1/16 + 9/16 = 3/4; √(3/4 · 4/3) / 4 = 1/4
        found = clustered_mean([1.0, 1.0, 1.0, 0.0], "abcd")
        assert found.standard_error == pytest.approx(0.25) and found.clusters == 4

    def test_pairs_by_hand(self) -> None:
        # mean 1/2, cluster sums of deviations 1 and −1; √((1 + 1) · 2) / 4 = 1/2
        assert clustered_mean([1.0, 1.0, 0.0, 0.0], "aabb").standard_error == pytest.approx(0.5)

    def test_repeating_each_question_changes_nothing(self) -> None:
        hits = [1.0, 0.0, 1.0, 1.0, 0.0]
        once = clustered_mean(hits, range(5))
        assert clustered_mean([*hits, *hits], [*range(5), *range(5)]).standard_error == pytest.approx(
            once.standard_error
        )

    def test_the_interval_is_wilsons(self) -> None:
        # Wilson's uses n where the error has n − 1
        found = clustered_mean([1.0] * 8000 + [0.0] * 2000, range(10000))
        low, high = stats.binomtest(8000, 10000).proportion_ci(method="wilson")
        assert (found.low, found.high) == pytest.approx((low, high), abs=1e-5)

    @pytest.mark.parametrize("hit", [0.0, 1.0])
    def test_all_alike_is_not_certain(self, hit: float) -> None:
        found = clustered_mean([hit] * 20, range(20))
        assert found.low is not None and found.high is not None and found.high - found.low > 0.1
        assert found.low <= hit <= found.high

    def test_one_cluster_tells_nothing(self) -> None:
        assert clustered_mean([1.0, 0.0], "aa").standard_error is None

    def test_intervals_hold_the_truth_as_often_as_they_say(self) -> None:
        rng = np.random.default_rng(0)
        held = 0
        for _ in range(300):
            chances = np.repeat(rng.choice([0.4, 0.9], 100), 3)
            found = clustered_mean(
                (rng.random(300) < chances).astype(float).tolist(), np.repeat(range(100), 3).tolist()
            )
            assert found.low is not None and found.high is not None
            held += found.low <= 0.65 <= found.high
        # 285 expected of 300, standard deviation 3.8
        assert 270 <= held <= 297


class TestHalfSampled:
    def test_a_plain_mean_has_its_own_error(self) -> None:
        hits = {str(number): float(number % 3 == 0) for number in range(600)}
        found = half_sampled(
            lambda ids: {"overall": fmean(hits[key] for key in ids), "n": len(ids), "deep": {"x": 0.5}},
            {key: key for key in hits},
            dict.fromkeys(hits, ""),
        )
        closed = clustered_mean(list(hits.values()), list(hits))
        # 200 halves: accurate to 5 %
        assert found["overall"]["standard_error"] == pytest.approx(closed.standard_error, rel=0.15)
        assert found["overall"]["low"] == pytest.approx(closed.low, abs=0.01)
        assert set(found) == {"overall", "deep"} and found["deep"]["x"]["standard_error"] == 0.0

    def test_clusters_stay_whole(self) -> None:
        pairs = {str(number): str(number // 2) for number in range(40)}

        def score(ids: set[str]) -> dict[str, float]:
            assert all((str(int(key) ^ 1)) in ids for key in ids)
            return {"overall": len(ids) / 40}

        assert half_sampled(score, pairs, dict.fromkeys(pairs, ""))["overall"]["clusters"] == 20

    def test_parts_keep_their_sizes(self) -> None:
        part = {str(number): "ab"[number % 2] for number in range(40)}

        def score(ids: set[str]) -> dict[str, float]:
            assert sum(part[key] == "a" for key in ids) in (10, 20)
            return {"overall": 0.5}

        half_sampled(score, {key: key for key in part}, part)


class TestPaired:
    def test_mcnemar(self) -> None:
        found = paired_test([1.0] * 8 + [-1.0] * 2 + [0.0] * 90, range(100))
        assert found.difference == pytest.approx(0.06) and found.p_value == pytest.approx(stats.binomtest(8, 10).pvalue)

    def test_nothing_differs(self) -> None:
        assert paired_test([0.0, 0.0], "ab").p_value == 1.0

    def test_questions_on_one_picture_are_no_evidence_each(self) -> None:
        alone = paired_test([1.0] * 12, range(12))
        shared = paired_test([1.0] * 12, [0] * 6 + [1] * 6)
        assert alone.p_value == pytest.approx(2 / 2**12) and shared.p_value == pytest.approx(0.5)

    def test_unequal_clusters_by_hand(self) -> None:
        # sums 3, 2, −1; of the 8 sign choices |sum| is at least 4 in 4: ±(3+2−1), ±(3+2+1)
        found = paired_test([1.0, 1.0, 1.0, 1.0, 1.0, -1.0], "aaabbc")
        assert found.p_value == pytest.approx(0.5) and found.difference == pytest.approx(4 / 6)

    def test_equal_models_seem_different_as_seldom_as_promised(self) -> None:
        rng = np.random.default_rng(1)
        seen = 0
        for _ in range(200):
            cluster = np.repeat(rng.choice([-1.0, 0.0, 1.0], 12), 2) * rng.choice([0.5, 1.0], 24)
            seen += paired_test(cluster.tolist(), np.repeat(range(12), 2).tolist()).p_value <= 0.05
        assert seen <= 20

    def test_benchmarks_count_the_same(self) -> None:
        found = weighted_test([([1.0] * 10, range(10)), ([-1.0] * 1000, range(1000))])
        assert found.difference == pytest.approx(0.0) and found.standard_error == pytest.approx(0.0)
        one = weighted_test([([1.0, 0.0], "ab"), ([0.0, 0.0], "cd")])
        # half of √(1/2 · 2) / 2
        assert one.standard_error is not None and math.isclose(one.standard_error, 0.25)
