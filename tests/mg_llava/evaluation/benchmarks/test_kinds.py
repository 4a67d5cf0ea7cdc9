"""Answers in all forms, odd rows, missing files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mg_llava.evaluation import GQA, VQA, Benchmark, MultipleChoice, ShortAnswer, TextVQA, VQAv2, YesNo
from mg_llava.evaluation.reading.answers import option_letter, same_short_answer, short_answer, yes_or_no
from mg_llava.evaluation.reading.vqa_answers import normalise, vqa_accuracy
from xtuner.errors import XTunerError

ANIMALS = {"A": "a cat", "B": "a dog", "C": "a big dog", "D": "none of these"}


class TestOptionLetter:
    @pytest.mark.parametrize(
        ("output", "letter"),
        [
            ("B", "B"),
            ("b)", "B"),
            ("**B**", "B"),
            ("[B].", "B"),
            ("B. a dog", "B"),
            ("B: because it barks", "B"),
            ("(B) a dog", "B"),
            ("Answer: B", "B"),
            ("The answer is (b)", "B"),
            ("The answer is (B)", "B"),
            ("The answer is A because it purrs", "A"),
            ("the correct option would be option B.", "B"),
            ("I choose B", "B"),
            ("I think B is right", "B"),
            ("A dog", "B"),
            ("It is a big dog.", "C"),
            ("dog", None),
            ("none of these", "D"),
            ("A or B", None),
            ("A, B", None),
            ("It is not A but B", None),
            ("E", None),
            ("", None),
            ("Because", None),
            ("A cat and a dog", None),
            ("I do not know", None),
        ],
    )
    def test_forms(self, output: str, letter: str | None) -> None:
        assert option_letter(output, ANIMALS) == letter

    @pytest.mark.parametrize(
        ("output", "letter"),
        [
            ("B\nBecause A is a cat.", "B"),
            ("It barks.\n\nB", "B"),
            ("Answer: B. A is wrong because it purrs.", "B"),
            ("**Answer:** **B**", "B"),
            ("The answer is **B**, not A.", "B"),
            ("The answer is A or B", None),
            ("The answer is not A", None),
            ("A is wrong. C is small. So the answer is B.", "B"),
            ("A. a cat\nB. a dog\nC. a big dog\nThe answer is B", "B"),
            ("A. a cat\nB. a dog\nC. a big dog", None),
            ("\\boxed{B}", "B"),
            ("A is wrong, so $\\boxed{\\text{B}}$", "B"),
            ("<answer>B</answer>", "B"),
            ("（Ｂ）", "B"),
            ("答案：Ｂ", "B"),
            ("A不对，故选B。", "B"),
            ("It must be 'B'", "B"),
            ("B - a dog", "B"),
            ("It is a big dog, not a dog", None),
            ("C#", None),
            ("C++ and more", None),
        ],
    )
    def test_with_reasons(self, output: str, letter: str | None) -> None:
        assert option_letter(output, ANIMALS) == letter

    def test_signs_and_marks_belong_to_options(self) -> None:
        numbers = {"A": "-3", "B": "3", "C": ".5", "D": "5"}
        given = ["-3", "\u22123", "3", "0.5", ".5", "5.0", "The value is 5.", "x = -3"]
        assert "".join(option_letter(text, numbers) or "?" for text in given) == "AABCCDDA"
        assert option_letter("12.50", {"A": "$12.50", "B": "$1.25"}) == "A"
        languages = {"A": "C#", "B": "C++", "C": "C"}
        assert [option_letter(text, languages) for text in ("C#", "It is C++.", "C")] == ["A", "B", "C"]

    def test_letters_up_to_i(self) -> None:
        options = {letter: f"text {letter}" for letter in "ABCDEFGHI"}
        assert [option_letter(f"Answer: {letter}", options) for letter in "EFGHI"] == list("EFGHI")

    def test_chinese(self) -> None:
        assert option_letter("B。", {"A": "猫", "B": "狗"}) == "B"
        assert option_letter("答案是B", {"A": "猫", "B": "狗"}) == "B"
        assert option_letter("狗。", {"A": "猫", "B": "狗"}) == "B"

    def test_numbers_as_options(self) -> None:
        assert option_letter("12", {"A": "1", "B": "12", "C": "2"}) == "B"
        assert option_letter("about 1.5", {"A": "1.5", "B": "5"}) == "A"


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        *(("Yes, and there is no other one.", "yes"), ("No. A yes would need a dog.", "no"), ("**Yes**", "yes")),
        *(("Answer: no, yes is wrong", "no"), ("\\boxed{Yes}", "yes"), ("Ｙｅｓ", "yes"), ("The answer is no.", "no")),
        *(("yes or no", None), ("yes/no", None), ("Yes, no", None), ("maybe", None), ("", None)),
        *(("是的", "yes"), ("不是", "no"), ("没有", "no"), ("There is no dog? Yes.", None)),
    ],
)
def test_yes_or_no_with_reasons(output: str, expected: str | None) -> None:
    assert yes_or_no(output) == expected


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        *(("-3", "-3"), ("\u22123", "-3"), (".5", ".5"), ("C#", "c#"), ("50%", "50%"), ("- a dog -", "dog")),
        ("The Red.", "red"),
        ("  a  red   circle! ", "red circle"),
        ("2", "2"),
        ("A", "a"),
        ("an A", "an a"),
        ("No,", "no"),
    ],
)
def test_short_answer(output: str, expected: str) -> None:
    assert short_answer(output) == expected


@pytest.mark.parametrize(
    ("output", "right", "same"),
    [("1,000", "1000", True), ("three", "3", True), (".5", "0.5", True), ("-3", "3", False), ("50%", "50", False)],
)
def test_same_short_answer(output: str, right: str, same: bool) -> None:
    assert same_short_answer(output, right) is same


class TestVqaAccuracy:
    @pytest.mark.parametrize(("equal", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
    def test_by_hand(self, equal: int, expected: float) -> None:
        """Leaving out one of ten: with 2 equal, 8 times 2/3 and twice 1/3 are 0.6."""
        answers = ["red"] * equal + [f"other {number}" for number in range(10 - equal)]
        assert vqa_accuracy("red", answers) == pytest.approx(expected)

    def test_contractions(self) -> None:
        assert normalise("dont") == "don't" and normalise("couldnt've") == "couldn't've"
        # with a capital in the challenge's table, which lower case never meets
        assert normalise("Im Ive shes I'dve") == "im ive shes i'dve"
        assert normalise("couldn'tve") == "couldn't've" and normalise("'owsat") == "'owsat"


def write(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8")
    return path


class TestTables:
    def bench(self, path: Path, **arguments: Any) -> MultipleChoice:
        return MultipleChoice(name="mc", data_root=str(path.parent), data_file=path.name, **arguments)

    def test_odd_cells(self, tmp_path: Path) -> None:
        picture = "x" * 100
        rows = [
            "index\tquestion\thint\tA\tB\tC\tanswer\timage\tsplit",
            f"1\tHow many?\tnan\t1\tNone\t\tb\t{picture}\tdev",
            "1\tAgain\t\t2.0\tNA\t3\t\t1\tdev",
        ]
        first, second = self.bench(write(tmp_path / "t.tsv", "\n".join(rows))).questions()
        assert first.options == {"A": "1", "B": "None"} and first.answer == "B" and first.text == "How many?"
        assert second.options == {"A": "2.0", "B": "NA", "C": "3"} and second.answer is None
        assert (first.id, second.id) == ("1", "1#2") and second.pictures[0].encoded == first.pictures[0].encoded
        assert first.groups == {"split": "dev"}

    def test_a_reference_to_no_picture_is_named(self, tmp_path: Path) -> None:
        path = write(tmp_path / "t.tsv", "index\tquestion\tA\tB\timage\n7\tq\tx\ty\t9\n")
        with pytest.raises(XTunerError, match="index 7: its image is that of row 9"):
            self.bench(path).questions()

    def test_a_missing_column_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(XTunerError, match="row 1: no question, A"):
            self.bench(write(tmp_path / "t.tsv", "index\tanswer\n7\tA\n")).questions()

    def test_not_a_table(self, tmp_path: Path) -> None:
        with pytest.raises(XTunerError, match="no tab-separated table|not a tab-separated table"):
            self.bench(write(tmp_path / "t.tsv", "")).questions()

    def test_circular_needs_numbers(self, tmp_path: Path) -> None:
        bench = self.bench(write(tmp_path / "t.tsv", "index\tquestion\tA\tB\tanswer\nx7\tq\tx\ty\tA\n"), circular=True)
        with pytest.raises(XTunerError, match="index 'x7' is not a number"):
            bench.questions()


class TestYesNo:
    @pytest.fixture
    def bench(self, tmp_path: Path) -> YesNo:
        rows = [{"question_id": n, "image": "x.jpg", "text": "?", "label": "yes" if n < 2 else "no"} for n in range(4)]
        write(tmp_path / "pope.json", "\n".join(map(json.dumps, rows)))
        return YesNo(name="pope", data_file=["pope.json"], data_root=str(tmp_path), image_folder="images")

    @pytest.mark.parametrize(
        ("output", "parsed"),
        [("Yes.", "yes"), ("no", "no"), ("There is not.", "no"), ("A dog is there", "yes"), ("", None), ("...", None)],
    )
    def test_rule_of_the_authors(self, bench: YesNo, output: str, parsed: str | None) -> None:
        assert bench.parse(bench.questions()[0], output) == parsed

    def test_no_words_are_wrong_for_both_answers(self, bench: YesNo) -> None:
        score = bench.score([bench.predict(question, "", "") for question in bench.questions()])
        assert score["overall"] == 0 and score["accuracy"] == 0

    def test_all_right(self, bench: YesNo) -> None:
        score = bench.score([bench.predict(question, "", question.answer) for question in bench.questions()])
        assert score["overall"] == 1 and score["yes_ratio"] == 0.5


class TestVQAv2:
    def test_scored_where_annotations_are_given(self, tmp_path: Path) -> None:
        rows = [{"question_id": n, "image": "a.png", "text": "?"} for n in (5, 6)]
        write(tmp_path / "q.jsonl", "\n".join(map(json.dumps, rows)))
        annotations = [{"question_id": 5, "answers": [{"answer": "two"}] * 10}]
        write(tmp_path / "a.json", json.dumps({"annotations": annotations}))
        bench = VQAv2(name="v", data_root=str(tmp_path), data_file="q.jsonl", answer_file="a.json", image_folder="")
        predictions = [bench.predict(question, "", "2.") for question in bench.questions()]
        assert [prediction.hit for prediction in predictions] == [1.0, None]
        assert bench.score(predictions)["overall"] == 1.0

    def test_wrong_annotation_file(self, tmp_path: Path) -> None:
        write(tmp_path / "q.jsonl", '{"question_id": 1, "image": "a", "text": "?"}')
        write(tmp_path / "a.json", "[]")
        bench = VQA(name="v", data_root=str(tmp_path), data_file="q.jsonl", answer_file="a.json", image_folder="")
        with pytest.raises(XTunerError, match="form of VQAv2's annotation file"):
            bench.questions()


class TestTextVQA:
    def bench(self, folder: Path, **arguments: Any) -> TextVQA:
        text = "What?\nReference OCR token: A, B\nAnswer shortly."
        write(folder / "q.jsonl", json.dumps({"question_id": "im", "image": "im.jpg", "text": text}))
        return TextVQA(name="t", data_root=str(folder), data_file="q.jsonl", image_folder="", **arguments)

    def test_without_hints(self, tmp_path: Path) -> None:
        assert "OCR" in self.bench(tmp_path).questions()[0].text
        assert self.bench(tmp_path, ocr_hints=False).questions()[0].text == "What?\nAnswer shortly."

    def test_files_of_different_versions(self, tmp_path: Path) -> None:
        write(tmp_path / "a.json", json.dumps({"data": [{"image_id": "im", "question": "Who?", "answers": ["x"]}]}))
        with pytest.raises(XTunerError, match="'What\\?' has no answers"):
            self.bench(tmp_path, answer_file="a.json").questions()


class TestFiles:
    def test_all_that_is_absent_is_named(self, tmp_path: Path) -> None:
        bench = GQA(
            name="gqa",
            data_root=str(tmp_path),
            data_file="q.jsonl",
            answer_file="a.json",
            image_folder="images",
            box_folder=str(tmp_path / "boxes"),
        )
        names = ["q.jsonl", "images", "boxes/gqa.json", "a.json"]
        assert bench.missing_files() == [str(tmp_path / name) for name in names]
        (tmp_path / "images").mkdir()
        assert str(tmp_path / "images") not in bench.missing_files()

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("[1,", "line 1"),
            ("{}", "expected a JSON list"),
            ('[{"id": 1}]', "record 0: no question, answer"),
            ("[]", "holds no"),
        ],
    )
    def test_short_answer_files(self, tmp_path: Path, content: str, message: str) -> None:
        write(tmp_path / "t.json", content)
        with pytest.raises(XTunerError, match=message):
            ShortAnswer(name="t", data_root=str(tmp_path), data_file="t.json").questions()

    @pytest.mark.parametrize("line", ["{", "[1]"])
    def test_a_bad_line_is_named(self, tmp_path: Path, line: str) -> None:
        write(tmp_path / "q.jsonl", f'{{"question_id": 1, "image": "a", "text": "?"}}\n{line}\n')
        bench: Benchmark = VQA(name="v", data_root=str(tmp_path), data_file="q.jsonl", image_folder="")
        with pytest.raises(XTunerError, match="line 2"):
            bench.questions()
