"""MME, HallusionBench, DocVQA, OCRVQA, ChartQA, TallyQA, RefCOCO, MMMU: hand-worked scores and odd rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mg_llava.evaluation import (
    MME,
    OCRVQA,
    Benchmark,
    ChartQA,
    DocVQA,
    HallusionBench,
    MultipleChoice,
    RefCOCO,
    TallyQA,
)
from xtuner.errors import XTunerError

PICTURE = "x" * 100


def table(path: Path, kind: type[Benchmark], *rows: str, **arguments: Any) -> Any:
    (path / "t.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return kind(name="t", data_root=str(path), data_file="t.tsv", **arguments)


def scored(bench: Benchmark, *outputs: str) -> dict[str, Any]:
    pairs = zip(bench.questions(), outputs, strict=True)
    return bench.score([bench.predict(question, "", output) for question, output in pairs])


class TestMME:
    HEADER = "index\timage\timage_path\tquestion\tcategory\tanswer"

    def rows(self, *cells: str) -> list[str]:
        return [self.HEADER, *(f"{number}\t{PICTURE}\t{cell}" for number, cell in enumerate(cells))]

    def test_by_hand(self, tmp_path: Path) -> None:
        """count: 3 of 4 right, 1 of 2 pictures; OCR: 2 of 2, 1 of 1: (75 + 50 + 100 + 100) of 400."""
        cells = ["a\tq\tcount\tYes", "a\tq\tcount\tNo", "b\tq\tcount\tYes", "b\tq\tcount\tNo"]
        # the same picture in another category is another pair
        cells += ["a\tq\tOCR\tYes", "a\tq\tOCR\tNo"]
        bench = table(tmp_path, MME, *self.rows(*cells))
        score = scored(bench, "Yes", "No", "Yes.", "yes, it is", "yes", "no")
        assert score["acc"] == {"count": 0.75, "OCR": 1.0} and score["acc_plus"] == {"count": 0.5, "OCR": 1.0}
        assert score["points"] == {"count": 125.0, "OCR": 200.0}
        assert score["perception"] == 325 and score["cognition"] == 0 and score["overall"] == 325 / 400

    def test_numbers_as_answers_and_rows_without_one(self, tmp_path: Path) -> None:
        bench = table(tmp_path, MME, *self.rows("a\tq\tcount\t1", "a\tq\tcount\t0.0", "b\tq\tcount\tnan"))
        assert [question.answer for question in bench.questions()] == ["yes", "no", None]
        assert scored(bench, "yes", "no", "no")["overall"] == 1.0

    def test_an_answer_of_another_kind_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(XTunerError, match="index 0: its answer is 'maybe'"):
            table(tmp_path, MME, *self.rows("a\tq\tcount\tmaybe")).questions()

    def test_no_answers_no_score(self, tmp_path: Path) -> None:
        assert scored(table(tmp_path, MME, *self.rows("a\tq\tcount\t")), "yes")["overall"] is None


class TestHallusionBench:
    def test_by_hand(self, tmp_path: Path) -> None:
        """Figures 0, 1 × questions 0, 1; figure 1's question 1 wrong: 3 of 4, 1 of 2 figures, 1 of 2 questions."""
        rows = [f"VD_ocr_0_{figure}_{number}\tq\tVD\tocr\tyes" for figure in (0, 1) for number in (0, 1)]
        bench = table(tmp_path, HallusionBench, "index\tquestion\tcategory\tl2-category\tanswer", *rows)
        score = scored(bench, "yes", "yes", "yes", "no")
        assert (score["aAcc"], score["fAcc"], score["qAcc"]) == (0.75, 0.5, 0.5) and score["overall"] == 0.75

    def test_an_index_of_another_form_is_named(self, tmp_path: Path) -> None:
        bench = table(tmp_path, HallusionBench, "index\tquestion\tcategory\tanswer", "7\tq\tVD\tyes")
        with pytest.raises(XTunerError, match="index '7' does not end in"):
            bench.questions()


class TestDocVQA:
    def test_cells_of_all_sorts(self, tmp_path: Path) -> None:
        cells = ["['a', \"b's\"]", "12", "3.0", "[draft]", "nan", "合同"]
        rows = [f"{number}\tq\t{cell}" for number, cell in enumerate(cells)]
        bench = table(tmp_path, DocVQA, "index\tquestion\tanswer", *rows)
        answers = [["a", "b's"], ["12"], ["3.0"], ["[draft]"], None, ["合同"]]
        assert [question.answer for question in bench.questions()] == answers
        assert scored(bench, "b's", "12", "3.0", "[Draft]", "?", "合同")["overall"] == 1.0

    def test_cells_are_never_executed(self, tmp_path: Path) -> None:
        bench = table(tmp_path, DocVQA, "index\tquestion\tanswer", "0\tq\t[__import__('os').getcwd()]")
        assert bench.questions()[0].answer == ["[__import__('os').getcwd()]"]

    def test_ocrvqa_wants_the_very_words(self, tmp_path: Path) -> None:
        bench = table(tmp_path, OCRVQA, "index\tquestion\tanswer", "0\tq\t['The Cat']", "1\tq\t1984", "1\tq\tx")
        assert [question.id for question in bench.questions()] == ["0", "1", "1#2"]
        assert scored(bench, "cat.", "198", "")["overall"] == pytest.approx(1 / 3)

    def test_ocrvqa_strict_compares_lower_case_alone(self, tmp_path: Path) -> None:
        rows = ["0\tq\t['The Cat']", "1\tq\tCat", "2\tq\tnan"]
        outputs = (" the cat", "cat.", "x")
        bench = table(tmp_path, OCRVQA, "index\tquestion\tanswer", *rows)
        strict = table(tmp_path, OCRVQA, "index\tquestion\tanswer", *rows, strict_reference=True)
        assert (scored(bench, *outputs)["overall"], scored(strict, *outputs)["overall"]) == (1.0, 0.5)
        said = [bench.published(question, output) for question, output in zip(bench.questions(), outputs, strict=True)]
        assert said == [{"VLMEvalKit": ("the cat", 1.0)}, {"VLMEvalKit": ("cat.", 0.0)}, {}]


def test_mmmu_open_questions(tmp_path: Path) -> None:
    rows = ["index\tquestion\tA\tB\tanswer", "o1\tHow many?\t\t\t['3', 'three']", "m1\tWhich?\tx\ty\tB"]
    bench = table(tmp_path, MultipleChoice, *rows, open_questions=True)
    assert bench.prompt(bench.questions()[0]) == "How many?\nAnswer the question using a single word or phrase."
    assert scored(bench, "Three.", "B")["overall"] == 1.0
    with pytest.raises(XTunerError, match="row 1: no A"):
        table(tmp_path, MultipleChoice, *rows).questions()


class TestJsonKinds:
    def bench(self, path: Path, kind: type[Benchmark], rows: Any) -> Any:
        (path / "t.json").write_text(json.dumps(rows), encoding="utf-8")
        return kind(name="t", data_root=str(path), data_file="t.json", image_folder="")

    def test_tallyqa(self, tmp_path: Path) -> None:
        rows = [
            {"image": "a.jpg", "question": "How many?", "question_id": 1, "answer": 2, "issimple": True},
            {"image": "a.jpg", "question": "How many?", "question_id": 2, "answer": 0, "issimple": False},
            {"image": "a.jpg", "question": "How many?", "question_id": 2},
        ]
        bench = self.bench(tmp_path, TallyQA, rows)
        score = scored(bench, "Two.", "1", "5")
        assert score["overall"] == 0.5 and score["groups"] == {"kind": {"simple": 1.0, "complex": 0.0}}

    def test_chartqa_with_numbers_and_without_labels(self, tmp_path: Path) -> None:
        bench = self.bench(
            tmp_path, ChartQA, [{"imgname": "a", "query": "q", "label": 3}, {"imgname": "a", "query": "r"}]
        )
        assert [question.answer for question in bench.questions()] == [["3"], None]
        assert scored(bench, "3.1", "x")["overall"] == 1.0

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            ({}, "expected a JSON list"),
            ([7], "record 0: expected an object"),
            ([{"imgname": "a"}], "record 0: no query"),
        ],
    )
    def test_bad_rows_are_named(self, tmp_path: Path, rows: Any, message: str) -> None:
        with pytest.raises(XTunerError, match=message):
            self.bench(tmp_path, ChartQA, rows).questions()


class TestRefCOCO:
    def bench(self, path: Path, **arguments: Any) -> RefCOCO:
        row = {"image": "a.jpg", "sent": "left dog", "bbox": [0, 0, 100, 50], "width": 200, "height": 100}
        (path / "t.jsonl").write_text(json.dumps(row), encoding="utf-8")
        return RefCOCO(name="t", data_root=str(path), data_file="t.jsonl", image_folder="", **arguments)

    @pytest.mark.parametrize(
        ("output", "square", "picture"),
        [
            ("[0.0, 0.25, 0.5, 0.5]", 1.0, 1.0),  # 200×100 in a square of 200 has 50 rows above it; half as IoU in both
            ("[0.0, 0.3, 0.5, 0.5]", 1.0, 0.0),
            ("[0.0, 0.0, 0.5, 0.45]", 0.0, 1.0),
            ("It is at [0.0,0.0,0.5,0.5].", 1.0, 1.0),
            ("[0.6, 0.6, 0.9, 0.9]", 0.0, 0.0),
            ("left", 0.0, 0.0),
        ],
    )
    def test_by_hand(self, tmp_path: Path, output: str, square: float, picture: float) -> None:
        assert scored(self.bench(tmp_path), output)["overall"] == square
        assert scored(self.bench(tmp_path, square_frame=False), output)["overall"] == picture
