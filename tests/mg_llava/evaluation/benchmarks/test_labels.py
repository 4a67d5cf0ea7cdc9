"""Answer cells in every writing that files have: read, or refused with their rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mg_llava.evaluation import MME, Benchmark, ChartQA, MultipleChoice, VQAv2, YesNo
from mg_llava.evaluation.benchmarks.labels import answers_of, read_list
from mg_llava.evaluation.reading.vqa_answers import vqa_accuracy
from tests.mg_llava.evaluation.benchmarks.benchmark_files import jsonl, listed, tsv
from xtuner.errors import ProblemsError, XTunerError


@pytest.mark.parametrize(
    ("cell", "texts"),
    [
        *(("a", ["a"]), ("3.0", ["3.0"]), ("2020-01-02", ["2020-01-02"]), ("[draft]", ["[draft]"]), ("[]", [])),
        *(("['a', \"b's\"]", ["a", "b's"]), ('["a", null, "b"]', ["a", "b"]), ("['a', None]", ["a"])),
        *(
            ("['a', null]", ["a"]),
            ("['null', nan]", ["null"]),
            ("[1, 2.5, NaN]", ["1", "2.5"]),
            ("['a' 'b']", ["a", "b"]),
        ),
        *(("[true]", ["True"]), ("[__import__('os').getcwd()]", ["[__import__('os').getcwd()]"]), ("['']", [])),
    ],
)
def test_lists_in_cells(cell: str, texts: list[str]) -> None:
    assert read_list(cell) == texts


@pytest.mark.parametrize(
    ("value", "answers"),
    [(3, ["3"]), (2.5, ["2.5"]), (None, None), ("", None), (float("nan"), None), (["a", None], ["a"]), ([None], None)],
)
def test_json_values(value: Any, answers: list[str] | None) -> None:
    assert answers_of(value) == answers


def pope(folder: Path, *labels: Any) -> Benchmark:
    rows = [{"question_id": number, "image": "a", "text": "?", "label": one} for number, one in enumerate(labels)]
    return jsonl(YesNo, rows, {})(folder)


class TestYesNo:
    def test_usual_writings(self, tmp_path: Path) -> None:
        labels = [
            1,
            0,
            "Yes.",
            "NO",
            "y",
            "n",
            True,
            False,
            "true",
            "0.0",
            " yes ",
            "是",
            "否",
            None,
            float("nan"),
            1.0,
        ]
        expected = ["yes", "no"] * 5 + ["yes", "yes", "no", None, None, "yes"]
        assert [question.answer for question in pope(tmp_path, *labels).questions()] == expected

    def test_others_are_refused_with_all_their_rows(self, tmp_path: Path) -> None:
        with pytest.raises(ProblemsError) as error:
            pope(tmp_path, "yes", "maybe", 2, "no", "-1").questions()
        assert [problem.split(":")[0] for problem in error.value.problems] == ["question 2", "question 3", "question 5"]
        assert "'maybe', expected yes or no" in str(error.value)

    def test_tables(self, tmp_path: Path) -> None:
        rows = ["1\tq\tc\tTRUE", "2\tq\tc\tn.", "3\tq\tc\tsure", "4\tq\tc\t?"]
        bench = tsv(MME, "index\tquestion\tcategory\tanswer", *rows)(tmp_path)
        with pytest.raises(ProblemsError, match="row with index 3: its answer is 'sure'") as error:
            bench.questions()
        assert len(error.value.problems) == 2


class TestOptions:
    HEADER = "index\tquestion\tA\tB\tanswer\tsplit"

    def bench(self, folder: Path, *rows: str, **arguments: Any) -> Benchmark:
        return tsv(MultipleChoice, self.HEADER, *rows, **arguments)(folder)

    def test_letters_and_texts(self, tmp_path: Path) -> None:
        rows = ["1\tq\tcat\tdog\tb\t", "2\tq\tcat\tdog\t(B).\t", "3\tq\tcat\tdog\tdog\t", "4\tq\tcat\tdog\tＢ\t"]
        assert [question.answer for question in self.bench(tmp_path, *rows).questions()] == ["B"] * 4

    def test_an_answer_that_is_no_option(self, tmp_path: Path) -> None:
        with pytest.raises(ProblemsError, match="index 1: its answer is 'E', expected one of its options A, B"):
            self.bench(tmp_path, "1\tq\tcat\tdog\tE\t", "2\tq\tcat\tdog\tA\t").questions()

    def test_letters_beyond_i(self, tmp_path: Path) -> None:
        letters = "ABCDEFGHIJKLM"
        header = "\t".join(["index", "question", *letters, "answer"])
        row = "\t".join(["1", "q", *(f"text {letter}" for letter in letters), "M"])
        bench = tsv(MultipleChoice, header, row)(tmp_path)
        assert bench.predict(bench.questions()[0], "", "Answer: M. K is too small.").hit == 1.0

    def test_splits_indices_and_repeated_rows(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        rows = ["1.0\tq\tcat\tdog\tA\tval", "1\tq\tcat\tdog\tA\tVALIDATION", "2\tq\tcat\tdog\tA\tdev"]
        bench = self.bench(tmp_path, *rows, split="validation")
        assert [question.id for question in bench.questions()] == ["1", "1#2"]
        assert "1 ids stand in its files more than once" in " ".join(capsys.readouterr().err.split())
        with pytest.raises(XTunerError, match="no row of split 'test'; it has: VALIDATION, dev, val"):
            self.bench(tmp_path, *rows, split="test").questions()


class TestFewAnswers:
    @pytest.mark.parametrize(
        ("people", "equal", "accuracy"),
        [(1, 1, 1.0), (1, 0, 0.0), (2, 2, 1.0), (2, 1, 0.5), (3, 3, 1.0), (3, 2, 2 / 3), (4, 4, 1.0), (10, 3, 0.9)],
    )
    def test_by_hand(self, people: int, equal: int, accuracy: float) -> None:
        assert vqa_accuracy("red", ["red"] * equal + ["blue"] * (people - equal)) == pytest.approx(accuracy)

    def test_the_formula_is_said(self, tmp_path: Path) -> None:
        asked = [{"question_id": float(number), "image": "a", "text": "?"} for number in range(3)]
        answers = [{"question_id": n, "answers": [{"answer": "x"}] * count} for n, count in enumerate((10, 1, 1))]
        bench = jsonl(VQAv2, asked, {"a.json": {"annotations": answers}}, answer_file="a.json")(tmp_path)
        assert bench.rules(bench.questions()) == {
            "formulas": {
                "mean over leaving out one of 10 answers of min(1, equal answers / 3)": 1,
                "equal to the only answer": 2,
            }
        }
        assert bench.predict(bench.questions()[1], "", "x").hit == 1.0


def test_labels_of_chartqa(tmp_path: Path) -> None:
    rows = [{"imgname": "a", "query": "q", "label": label} for label in ([2, None], float("nan"), "", "2020-01-02", 0)]
    bench = listed(ChartQA, json.loads(json.dumps(rows)))(tmp_path)
    assert [question.answer for question in bench.questions()] == [["2"], None, None, ["2020-01-02"], ["0"]]
