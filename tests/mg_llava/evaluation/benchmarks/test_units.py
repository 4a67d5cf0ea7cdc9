"""Questions that count together: what is not whole is counted apart, and a limit never cuts a group."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mg_llava.evaluation import MME, MMVP, Benchmark, HallusionBench, MultipleChoice
from tests.mg_llava.evaluation.benchmarks.benchmark_files import tsv

OPTIONS = "index\tquestion\tA\tB\tC\tanswer\tcategory"


def circular(folder: Path, indices: Sequence[int], **arguments: Any) -> Benchmark:
    rows = [f"{index}\tq\tx\ty\tz\tA\tc{index % 10}" for index in indices]
    return tsv(MultipleChoice, OPTIONS, *rows, circular=True, **arguments)(folder)


def mme(folder: Path, *cells: str) -> Benchmark:
    rows = [f"{number}\t{'x' * 70}\tq\t{cell}" for number, cell in enumerate(cells)]
    return tsv(MME, "index\timage\tquestion\timage_path\tcategory\tanswer", *rows)(folder)


def hallusion(folder: Path, *places: str, **arguments: Any) -> Benchmark:
    rows = [f"VD_x_{place}\tq\tVD\tyes\t{'x' * 70}" for place in places]
    return tsv(HallusionBench, "index\tquestion\tcategory\tanswer\timage", *rows, **arguments)(folder)


def mmvp(folder: Path, *indices: int) -> Benchmark:
    rows = ["Index,Question,Options,Correct Answer", *(f"{index},q,(a) x (b) y,(a)" for index in indices)]
    (folder / "Questions.csv").write_text("\n".join(rows), encoding="utf-8")
    return MMVP(name="t", data_root=str(folder), data_file="Questions.csv", image_folder="")


def score(bench: Benchmark, *outputs: str) -> dict[str, Any]:
    said = outputs or [str(question.answer) for question in bench.questions()]
    return bench.score([bench.predict(one, "", text) for one, text in zip(bench.questions(), said, strict=True)])


class TestMissing:
    @pytest.mark.parametrize(
        "indices",
        [
            [1],
            [1, 1_000_001],
            [1, 1_000_001, 3_000_001],
            [1, 1_000_001, 2_000_001, 2_000_001],
            [1_000_001, 2_000_001],
        ],
    )
    def test_rotations(self, tmp_path: Path, indices: list[int]) -> None:
        found = score(circular(tmp_path, [2, 1_000_002, 2_000_002, *indices]))
        assert found["num_incomplete_groups"] == 1 and found["overall"] == 1.0
        assert set(found["groups"]["category"]) == {"c2"} and found["without_circular"] == 1.0

    def test_all_rotations_missing_is_no_score(self, tmp_path: Path) -> None:
        assert score(circular(tmp_path, [1]))["overall"] is None

    def test_the_original_credits_what_is_there(self, tmp_path: Path) -> None:
        bench = circular(tmp_path, [1], strict_reference=True)
        assert score(bench)["overall"] == 1.0

    def test_half_a_picture_of_mme(self, tmp_path: Path) -> None:
        found = score(mme(tmp_path, "a\tcount\tYes", "a\tcount\tNo", "b\tcount\tYes"), "yes", "yes", "yes")
        assert found["num_incomplete_groups"] == 1
        assert found["acc"] == {"count": 0.5} and found["acc_plus"] == {"count": 0.0}

    def test_a_figure_without_a_question(self, tmp_path: Path) -> None:
        places = ["0_0_0", "0_0_1", "0_1_0", "1_0_0", "1_1_0"]
        found = score(hallusion(tmp_path, *places))
        # figure 1 and question 1 of set 0 lack each other
        assert (found["num_incomplete_figures"], found["num_incomplete_questions"]) == (1, 1)
        assert found["num_incomplete_groups"] == 2 and (found["fAcc"], found["qAcc"], found["aAcc"]) == (1, 1, 1)
        found = score(hallusion(tmp_path, *places), "yes", "no", "yes", "yes", "yes")
        assert found["fAcc"] == pytest.approx(2 / 3) and found["qAcc"] == 1.0 and found["aAcc"] == 0.8

    def test_half_a_pair(self, tmp_path: Path) -> None:
        assert score(mmvp(tmp_path, 1, 2, 3)) == {
            "overall": 1.0,
            "groups": {},
            "accuracy": 1.0,
            "num_incomplete_groups": 1,
        }
        # the same half twice is no pair
        assert score(mmvp(tmp_path, 1, 1))["num_incomplete_groups"] == 1

    def test_answers_that_are_not_there_yet(self, tmp_path: Path) -> None:
        bench = circular(tmp_path, [1, 1_000_001, 2_000_001])
        found = bench.score([bench.predict(one, "", "A") for one in bench.questions()[:2]])
        assert found["overall"] is None and found["num_incomplete_groups"] == 1


class TestLimit:
    @pytest.mark.parametrize(
        ("limit", "taken"), [(1, [0, 2, 4]), (3, [0, 2, 4]), (5, [0, 2, 4]), (6, [0, 1, 2, 3, 4, 5])]
    )
    def test_rotations_that_stand_apart(self, tmp_path: Path, limit: int, taken: list[int]) -> None:
        indices = [1, 2, 1_000_001, 1_000_002, 2_000_001, 2_000_002]
        bench = circular(tmp_path, indices)
        found = [question.box_id for question in bench.first_questions(limit)]
        assert found == [str(indices[place]) for place in taken]

    def test_other_kinds(self, tmp_path: Path) -> None:
        assert (
            len(mme(tmp_path, *["a\tcount\tYes", "a\tcount\tNo", "b\tOCR\tYes", "b\tOCR\tNo"]).first_questions(3)) == 2
        )
        assert len(mmvp(tmp_path, 1, 2, 3, 4).first_questions(1)) == 2
        assert len(hallusion(tmp_path, "0_0_0", "0_0_1", "0_1_0", "0_1_1", "1_0_0").first_questions(2)) == 4

    def test_none_takes_all(self, tmp_path: Path) -> None:
        assert len(mmvp(tmp_path, 1, 2, 3).first_questions(None)) == 3
