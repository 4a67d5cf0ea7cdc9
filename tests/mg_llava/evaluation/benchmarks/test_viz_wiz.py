"""VizWiz: the authors' lists and LLaVA's lines, answers that cannot be given, the upload."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mg_llava.evaluation import VizWiz
from tests.mg_llava.evaluation.benchmarks.benchmark_files import jsonl, listed
from xtuner.errors import XTunerError

REQUEST = (
    "When the provided information is insufficient, respond with 'Unanswerable'.\n"
    "Answer the question using a single word or phrase."
)


def row(number: int, answers: list[str] | None, **more: Any) -> dict[str, Any]:
    known = {} if answers is None else {"answers": [{"answer": text, "answer_confidence": "yes"} for text in answers]}
    return {"image": f"VizWiz_val_{number}.jpg", "question": "What is this?", **known, **more}


ROWS = [
    row(0, ["soup"] * 2 + ["can"] * 8, answer_type="other", answerable=1),
    row(1, ["unanswerable"] * 10, answer_type="unanswerable", answerable=0),
    row(2, ["unsuitable"] * 5 + ["unanswerable"] * 5, answer_type="unanswerable", answerable=0),
    row(3, ["unanswerable"] * 2 + ["2"] * 8, answer_type="number", answerable=1),
    row(4, None),
]
OUTPUTS = ("Soup.", "Unanswerable", "a dog", "unanswerable", "dog")


def test_by_hand(tmp_path: Path) -> None:
    """0.6 for two of ten, 1, 0, 0.6; two are said to be unanswerable, one of them is, and one is missed."""
    bench = listed(VizWiz, ROWS)(tmp_path)
    predictions = [bench.predict(one, "", said) for one, said in zip(bench.questions(), OUTPUTS, strict=True)]
    score = bench.score(predictions)
    assert score["overall"] == pytest.approx(2.2 / 4) and predictions[-1].hit is None
    assert score["unanswerable"] == {"precision": 0.5, "recall": 0.5, "f1": 0.5}
    assert score["groups"]["answer_type"] == pytest.approx({"other": 0.6, "unanswerable": 0.5, "number": 0.6})
    assert bench.prompt(bench.questions()[0]) == f"What is this?\n{REQUEST}"
    (path,) = bench.write_files(str(tmp_path), predictions)
    assert json.loads(Path(path).read_text())[:2] == [
        {"image": "VizWiz_val_0.jpg", "answer": "soup"},
        {"image": "VizWiz_val_1.jpg", "answer": "unanswerable"},
    ]


def test_lines_hold_the_request_and_take_answers_by_picture(tmp_path: Path) -> None:
    lines = [{"question_id": 7, "image": one["image"], "text": f"What is this?\n{REQUEST}"} for one in ROWS[:2]]
    bench = jsonl(VizWiz, lines, {"val.json": ROWS[:2]}, answer_file="val.json")(tmp_path)
    assert [bench.prompt(one) for one in bench.questions()] == [f"What is this?\n{REQUEST}"] * 2
    predictions = [bench.predict(one, "", said) for one, said in zip(bench.questions(), ("can", "x"), strict=True)]
    assert [one.hit for one in predictions] == [1.0, 0.0]


def test_without_labels_there_is_no_rate_of_unanswerable(tmp_path: Path) -> None:
    bench = listed(VizWiz, [row(0, ["soup"] * 10)])(tmp_path)
    assert bench.score([bench.predict(bench.questions()[0], "", "soup")]) == {"overall": 1.0, "groups": {}}


def test_answers_of_another_form_are_named(tmp_path: Path) -> None:
    with pytest.raises(XTunerError, match="picture VizWiz_val_0.jpg: expected answers as a list"):
        listed(VizWiz, [{**row(0, None), "answers": [{"text": "soup"}]}])(tmp_path).questions()
    with pytest.raises(XTunerError, match="record 0: no image"):
        listed(VizWiz, [{"question": "?"}])(tmp_path).questions()
