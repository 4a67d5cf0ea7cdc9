"""Which questions belong together, and that every score of every kind has its error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mg_llava.evaluation import Picture, Question, ShortAnswer
from mg_llava.evaluation.benchmarks.base import Benchmark
from mg_llava.evaluation.benchmarks.kinds.mmvp import MMVP
from mg_llava.evaluation.benchmarks.kinds.paired_yes_no import MME, HallusionBench
from mg_llava.evaluation.run.uncertainty import find_clusters, uncertainties
from tests.mg_llava.evaluation.benchmarks.benchmark_files import ENCODED, tsv


def question(key: str, *pictures: str, box_id: str = "") -> Question:
    return Question(key, "?", tuple(Picture(key=name, path=name) for name in pictures), box_id)


class TestClusters:
    def clusters(self, benchmark: type[Benchmark], *questions: Question) -> dict[str, str]:
        return find_clusters(benchmark(name="b", data_file="f"), questions)  # type: ignore[call-arg]

    def test_a_shared_picture_joins(self) -> None:
        found = self.clusters(ShortAnswer, question("a", "1"), question("b", "2"), question("c", "1"), question("d"))
        assert found == {"a": "a", "b": "b", "c": "a", "d": "d"}

    def test_a_question_on_two_pictures_joins_both(self) -> None:
        found = self.clusters(
            ShortAnswer, *(question(key, *names) for key, names in zip("abc", ("1", "2", "12"), strict=True))
        )
        assert set(found.values()) == {"a"}

    def test_pictures_in_the_file_are_the_same_where_their_text_is(self) -> None:
        pictures = [Picture(key="", encoded=text) for text in ("AAAA", "BBBB", "AAAA")]
        questions = [Question(key, "?", (one,)) for key, one in zip("abc", pictures, strict=True)]
        assert self.clusters(ShortAnswer, *questions) == {"a": "a", "b": "b", "c": "a"}

    def test_pairs_of_mmvp(self) -> None:
        found = self.clusters(MMVP, *(question(f"q{number}", str(number), box_id=str(number)) for number in (1, 2, 3)))
        assert found == {"q1": "q1", "q2": "q1", "q3": "q3"}

    def test_a_set_of_hallusion_bench(self) -> None:
        ids = ("VD_1_0_1", "VD_1_0_2", "VD_1_1_1", "VD_2_0_1")
        found = self.clusters(HallusionBench, *(question(key, box_id=key) for key in ids))
        assert list(found.values()) == [ids[0]] * 3 + [ids[3]]


def scored(bench: Benchmark, outputs: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    pairs = zip(bench.questions(), outputs, strict=True)
    predictions = [bench.predict(one, "", output) for one, output in pairs]
    scores = bench.score(predictions)
    return scores, uncertainties(bench, predictions, find_clusters(bench, bench.questions()), scores)


def test_a_plain_mean_in_closed_form(tmp_path: Path) -> None:
    rows = [f'{{"id": {n}, "question": "q", "answer": "a", "image": "{n // 2}.png", "kind": "k"}}' for n in range(4)]
    (tmp_path / "t.json").write_text(f"[{','.join(rows)}]")
    bench = ShortAnswer(name="t", data_root=str(tmp_path), data_file="t.json", image_folder="")
    _, found = scored(bench, ["a", "a", "b", "b"])
    # two pictures that differ: see the pairs of the statistics' own test
    assert found["overall"]["standard_error"] == pytest.approx(0.5) and found["overall"]["clusters"] == 2


def test_sums_of_points_have_theirs(tmp_path: Path) -> None:
    rows = [f"{n}\t{ENCODED}{n // 2:04}\t{n // 2}\tq\t{'count' if n < 40 else 'OCR'}\tYes" for n in range(80)]
    bench = tsv(MME, "index\timage\timage_path\tquestion\tcategory\tanswer", *rows)(tmp_path)
    scores, found = scored(bench, ["yes" if n % 4 else "no" for n in range(80)])
    assert scores["points"] == {"count": 125.0, "OCR": 125.0}
    overall, count = found["overall"], found["points"]["count"]
    assert overall["low"] < scores["overall"] < overall["high"] and overall["standard_error"] > 0
    assert count["low"] < 125 < count["high"] and found["groups"]["category"]["OCR"]["standard_error"] > 0


def test_without_a_score_there_is_none(tmp_path: Path) -> None:
    bench = tsv(MME, "index\timage\tquestion\tcategory", f"0\t{ENCODED}\tq\tcount")(tmp_path)
    assert scored(bench, ["yes"])[1] == {}
