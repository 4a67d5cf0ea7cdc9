"""Judged benchmarks with a stub judge: MM-Vet, LLaVA-Bench, MMVP, MathVista."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mg_llava.evaluation import MMVP, Benchmark, LLaVABench, MathVista, MMVet, Prediction
from mg_llava.evaluation.results.predictions import PredictionFiles
from mg_llava.evaluation.run.scoring import finish, rescore
from tests.stub_endpoint import Stub, stub_endpoint
from xtuner.evaluation.judge import Judge

VERDICTS = {
    "x = 5": "0.5",
    "kitten": "nonsense",
    "great": "8 10\nbecause",
    "the first": "yes",
    "so it is three": "3",
}


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    def reply(prompt: str) -> str:
        return next((verdict for words, verdict in VERDICTS.items() if words in prompt), "none")

    with stub_endpoint(reply) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", "test-key")
        yield server


def lines(path: Path, *rows: dict[str, Any]) -> None:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")


def run(bench: Benchmark, folder: Path, outputs: list[str], judge: Judge | None) -> dict[str, Any]:
    files = PredictionFiles(folder, {"checkpoint": "x"})
    files.prepare()
    questions = bench.questions()
    predictions = [bench.predict(question, "p", output) for question, output in zip(questions, outputs, strict=True)]
    files.add(predictions)
    return finish(bench, files, predictions, judge)


@pytest.fixture
def judge(stub: Stub) -> Judge:
    return Judge("tiny", retries=0)


@pytest.fixture
def mm_vet(tmp_path: Path) -> MMVet:
    lines(tmp_path / "q.jsonl", *({"question_id": n, "image": "a", "text": "What is x?"} for n in range(4)))
    row = {"question": "What is x?", "answer": "5<OR>-5", "capability": ["ocr", "math"]}
    (tmp_path / "a.json").write_text(json.dumps({f"v1_{number}": row for number in range(3)}))
    return MMVet(name="v", data_root=str(tmp_path), data_file="q.jsonl", answer_file="a.json", image_folder="")


class TestMMVet:
    def test_scores_of_the_judge(self, mm_vet: MMVet, judge: Judge, stub: Stub, tmp_path: Path) -> None:
        # half right, a reply that is no score, no answer at all, no reference
        outputs = ["x = 5", "kitten", "", "dog"]
        metrics = run(mm_vet, tmp_path / "out", outputs, judge)
        by_capability = {"capabilities": {"math+ocr": 0.25}, "capability": {"math": 0.25, "ocr": 0.25}}
        assert metrics["overall"] == 0.25 and metrics["groups"] == by_capability
        assert metrics["num_to_judge"] == metrics["num_judged"] == 2 and metrics["judges"] == ["tiny"]
        assert "| 5 <OR> -5 | x = 5 | " in "".join(r["messages"][0]["content"] for r in stub.requests)
        assert metrics["files"] == ["upload.json", "cap-score.csv", "cap-int-score.csv"]
        table = (tmp_path / "out" / "cap-score.csv").read_text().splitlines()
        assert table == [",math,ocr,total", "v,25.0,25.0,25.0", "questions,2,2,2"]
        # scored again: nothing is asked, the judgements stand
        assert rescore(mm_vet, tmp_path / "out")["overall"] == 0.25
        assert rescore(mm_vet, tmp_path / "out", judge)["overall"] == 0.25 and len(stub.requests) == 2

    def test_partial_results_where_the_judge_is_down(
        self, mm_vet: MMVet, judge: Judge, stub: Stub, tmp_path: Path
    ) -> None:
        stub.statuses = [401] * 9
        metrics = run(mm_vet, tmp_path / "out", ["x = 5", "kitten", "", "dog"], judge)
        assert metrics["num_judgements_failed"] == 2 and metrics["num_judged"] == 0
        stub.statuses = []
        assert rescore(mm_vet, tmp_path / "out", judge)["overall"] == 0.25

    def test_without_a_judge_predictions_are_written(self, mm_vet: MMVet, tmp_path: Path) -> None:
        metrics = run(mm_vet, tmp_path / "out", ["a", "b", "c", "d"], None)
        assert metrics["overall"] is None and metrics["files"] == ["upload.json"]


def test_llava_bench_is_a_ratio(stub: Stub, judge: Judge, tmp_path: Path) -> None:
    lines(tmp_path / "q.jsonl", *({"question_id": n, "image": "a", "text": "?", "category": "conv"} for n in (1, 2)))
    lines(tmp_path / "c.jsonl", {"image": "a", "caption": "a dog"})
    lines(tmp_path / "g.jsonl", *({"question_id": n, "text": "reference"} for n in (1, 2)))
    bench = LLaVABench(
        name="l", data_root=str(tmp_path), data_file="q.jsonl", context_file="c.jsonl", answer_file="g.jsonl"
    )
    # 10 against 8, and an empty answer that gets nothing against the reference's mean of 8
    metrics = run(bench, tmp_path / "out", ["great", ""], judge)
    assert metrics["overall"] == 10 / 16
    assert metrics["groups"] == {"category": {"conv": 10 / 16}}
    assert metrics["points"] == {
        "all": {"reference": 80.0, "answer": 50.0},
        "conv": {"reference": 80.0, "answer": 50.0},
    }
    assert "[Context]\na dog" in stub.requests[0]["messages"][0]["content"]


def test_llava_bench_of_a_category_is_a_ratio_of_sums(tmp_path: Path) -> None:
    """(2 + 9) / (8 + 10) of one category, not the mean of 2 / 8 and 9 / 10; (2 + 9 + 5) / (8 + 10 + 10) of all."""
    rows = [("conv", "8 2"), ("conv", "10 9"), ("complex", "10 5")]
    asked = [{"question_id": n, "image": "a", "text": "?", "category": name} for n, (name, _) in enumerate(rows)]
    lines(tmp_path / "q.jsonl", *asked)
    bench = LLaVABench(name="l", data_root=str(tmp_path), data_file="q.jsonl")
    judged = [Prediction(str(n), "", "x", verdict, 1.0) for n, (_, verdict) in enumerate(rows)]
    score = bench.score(judged)
    assert score["overall"] == pytest.approx(16 / 28)
    assert score["groups"]["category"] == pytest.approx({"conv": 11 / 18, "complex": 0.5})
    assert score["points"]["conv"] == {"reference": 90.0, "answer": 55.0}


def test_mmvp_asks_only_where_no_option_was_read(stub: Stub, judge: Judge, tmp_path: Path) -> None:
    rows = [
        "Index,Question,Options,Correct Answer",
        '1,"Left, or right?",(a) left (b) right,(a)',
        "2,Q,(a) x (b) y,(b)",
    ]
    (tmp_path / "q.csv").write_text("\n".join(rows))
    bench = MMVP(name="m", data_root=str(tmp_path), data_file="q.csv", image_folder="")
    assert bench.questions()[0].options == {"A": "left", "B": "right"}
    metrics = run(bench, tmp_path / "out", ["the first one", "(b) y"], judge)
    assert metrics["overall"] == 1.0 and len(stub.requests) == 1


def test_mathvista_asks_only_where_no_rule_reads(stub: Stub, judge: Judge, tmp_path: Path) -> None:
    problem = {"image": "a", "question": "Q", "question_type": "free_form", "answer_type": "integer", "answer": "3"}
    choice = {
        **problem,
        "question_type": "multi_choice",
        "answer_type": "text",
        "choices": ["1.2", "1.3"],
        "answer": "1.3",
    }
    list_ = {**problem, "answer_type": "list", "answer": "[1, 2]"}
    one_place = {**problem, "answer_type": "float", "precision": 1.0, "answer": "1.2"}
    problems = {str(number): one for number, one in enumerate([problem, problem, choice, list_, one_place])}
    (tmp_path / "t.json").write_text(json.dumps(problems))
    bench = MathVista(name="m", data_root=str(tmp_path), data_file="t.json", image_folder="")
    outputs = ["It is 3.", "so it is three, or 2 + 1", "(B) 1.3", "so [1,2]", "about 1.19"]
    metrics = run(bench, tmp_path / "out", outputs, judge)
    predictions = PredictionFiles(tmp_path / "out", {}).read()
    assert [one.hit for one in predictions.values()] == [1.0, 1.0, 1.0, 1.0, 1.0]
    assert metrics["num_to_judge"] == 1 and isinstance(predictions["1"], Prediction)
