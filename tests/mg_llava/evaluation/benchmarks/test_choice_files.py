"""SEED-Bench and V*Bench in the authors' own files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mg_llava.evaluation import Benchmark, SEEDBench, VStarBench
from tests.mg_llava.evaluation.benchmarks.benchmark_files import jsonl, listed
from xtuner.errors import XTunerError


def scored(bench: Benchmark, *outputs: str) -> dict[str, Any]:
    pairs = zip(bench.questions(), outputs, strict=True)
    return bench.score([bench.predict(question, "", output) for question, output in pairs])


def seed(number: int, task: int, answer: str | None, **more: Any) -> dict[str, Any]:
    choices = {f"choice_{letter}": f"{letter} thing" for letter in "abcd"}
    kind = {"question_id": str(number), "question_type_id": task, "data_id": f"{number}_7", "data_type": "image"}
    return {"question": "What?", "answer": answer, **choices, **kind, **more}


TASKS = {"Scene Understanding": 1, "Text Understanding": 9}
ROWS = [
    seed(1, 1, "A"),
    seed(2, 1, "b", choice_c=None, choice_d=None),
    seed(3, 9, "D"),
    seed(4, 9, None),
    seed(5, 10, "A", data_type="video", data_id="5.webm"),
]


class TestSEEDBench:
    def test_by_hand(self, tmp_path: Path) -> None:
        """2 of 3 right: both of scenes, none of text; one has no answer, and the video is not asked."""
        bench = listed(SEEDBench, {"questions": ROWS, "question_type": TASKS})(tmp_path)
        score = scored(bench, "A", "Answer: B", "C. because", "A")
        assert score["overall"] == pytest.approx(2 / 3)
        assert score["groups"] == {"task": {"Scene Understanding": 1.0, "Text Understanding": 0.0}}
        assert bench.beside([]) == {"num_video_questions_left_out": 1}
        first, second = bench.questions()[:2]
        assert first.pictures[0].key == "1_7" and list(second.options) == ["A", "B"]

    def test_upload(self, tmp_path: Path) -> None:
        bench = listed(SEEDBench, {"questions": ROWS[:2], "question_type": TASKS})(tmp_path)
        answers = [
            bench.predict(one, "", said) for one, said in zip(bench.questions(), ("(C)", "no idea"), strict=True)
        ]
        (path,) = bench.write_files(str(tmp_path), answers)
        rows = [json.loads(line) for line in Path(path).read_text().splitlines()]
        assert rows == [{"question_id": "1", "prediction": "C"}, {"question_id": "2", "prediction": "no idea"}]

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ([], "expected SEED-Bench's object"),
            ({"questions": {}}, "expected SEED-Bench's object"),
            ({"questions": [{"question": "?"}]}, "question 1: no question_id, data_id, question_type_id"),
            ({"questions": [seed(1, 1, "E")]}, "question 1: its answer is 'E', expected one of its options A, B, C, D"),
            (
                {"questions": [seed(1, 1, "A", **dict.fromkeys(f"choice_{x}" for x in "abcd"))]},
                "question 1: no options",
            ),
        ],
    )
    def test_bad_files_are_named(self, tmp_path: Path, content: Any, message: str) -> None:
        with pytest.raises(XTunerError, match=message):
            listed(SEEDBench, content)(tmp_path).questions()


TEXT = (
    "What is the material of the glove?\n(A) rubber\n(B) cotton\n(C) kevlar\n(D) leather\n"
    "Answer with the option's letter from the given choices directly."
)


class TestVStarBench:
    def row(self, number: int, label: str | None, category: str) -> dict[str, Any]:
        return {"question_id": number, "image": f"{category}/a.jpg", "text": TEXT, "category": category, "label": label}

    def test_by_hand(self, tmp_path: Path) -> None:
        rows = [self.row(0, "A", "direct_attributes"), self.row(1, "(d)", "relative_position")]
        bench = jsonl(VStarBench, [*rows, self.row(2, None, "relative_position")], {})(tmp_path)
        score = scored(bench, "rubber", "B", "A")
        assert score["overall"] == 0.5
        assert score["groups"]["category"] == {"direct_attributes": 1.0, "relative_position": 0.0}

    def test_it_is_asked_as_the_authors_ask(self, tmp_path: Path) -> None:
        bench = jsonl(VStarBench, [self.row(0, "A", "direct_attributes")], {})(tmp_path)
        assert bench.prompt(bench.questions()[0]) == TEXT
        other = jsonl(VStarBench, [self.row(0, "A", "x")], {}, request="Only the letter, please.")(tmp_path)
        assert other.prompt(other.questions()[0]).endswith("(D) leather\nOnly the letter, please.")

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ({"question_id": 0, "image": "a"}, "question 1: no text"),
            ({"question_id": 0, "image": "a", "text": "What?", "label": "A"}, "question 0: no options"),
            ({"question_id": 0, "image": "a", "text": TEXT, "label": "E"}, "its answer is 'E'"),
        ],
    )
    def test_bad_rows_are_named(self, tmp_path: Path, row: dict[str, Any], message: str) -> None:
        with pytest.raises(XTunerError, match=message):
            jsonl(VStarBench, [row], {})(tmp_path).questions()
