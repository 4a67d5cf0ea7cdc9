"""``metrics.json`` holds the official scorer's number beside ours, wherever the two may differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mg_llava.evaluation import GQA, MME, Benchmark, ChartQA, MathVista, MultipleChoice, YesNo
from mg_llava.evaluation.results.predictions import PredictionFiles
from mg_llava.evaluation.run.scoring import finish
from tests.mg_llava.evaluation.benchmarks.benchmark_files import jsonl, listed, tsv

POPE = [{"question_id": number, "image": "a", "text": "?", "label": label} for number, label in enumerate((1, "No."))]
MC = "index\tquestion\tA\tB\tanswer"
PROBLEM = {"image": "a", "question": "q", "question_type": "free_form", "answer_type": "integer", "answer": "-5"}
CASES: dict[str, tuple[Any, list[str], float, str, float]] = {
    # what is made in a folder, answers, ours, the official scorer, its number
    "pope": (jsonl(YesNo, POPE, {}), ["Yes, it is not hidden", "NO"], 1.0, "POPE", 0.0),
    "mme": (
        tsv(MME, "index\tquestion\tcategory\tanswer\timage", "1\tq\tcount\tYes\tx" + "x" * 70, "2\tq\tcount\tNo\t1"),
        ["The answer is yes", "No"],
        1.0,
        "MME",
        0.25,
    ),
    "mmbench": (
        tsv(MultipleChoice, MC, "1\tq\tcat\tdog\tB", "1000001\tq\tdog\tcat\tA", circular=True),
        ["B. A is wrong", "A"],
        1.0,
        "VLMEvalKit",
        0.0,
    ),
    "mmmu": (
        tsv(MultipleChoice, MC, "1\tq\t\t\t0.5", "2\tq\tx\ty\tB", open_questions=True),
        [".5", "B"],
        1.0,
        "MMMU",
        0.5,
    ),
    "chartqa": (
        listed(ChartQA, [{"imgname": "a", "query": "q", "label": "2"}, {"imgname": "a", "query": "q", "label": "2"}]),
        ["2%", "2"],
        1.0,
        "relaxed correctness (Pix2Struct, VLMEvalKit, lmms-eval)",
        0.5,
    ),
    "mathvista": (listed(MathVista, {"1": PROBLEM}), ["\u22125"], 1.0, "MathVista without a judge", 0.0),
    "gqa": (
        jsonl(GQA, POPE, {"a.json": {"0": {"question": "q", "answer": "cat"}}}, answer_file="a.json"),
        ["cat!", "x"],
        0.0,
        "GQA",
        0.0,
    ),
}


def metrics(bench: Benchmark, outputs: list[str], folder: Path) -> dict[str, Any]:
    files = PredictionFiles(folder / "out", {})
    files.prepare()
    predictions = [
        bench.predict(one, bench.prompt(one), text) for one, text in zip(bench.questions(), outputs, strict=True)
    ]
    files.add(predictions)
    return finish(bench, files, predictions, None)


@pytest.mark.parametrize("name", CASES)
def test_official_beside_ours(name: str, tmp_path: Path) -> None:
    make, outputs, ours, scorer, official = CASES[name]
    found = metrics(make(tmp_path), outputs, tmp_path)
    assert found["overall"] == ours
    assert (found["official_scorer"], found["official"]) == (scorer, pytest.approx(official))


def test_other_scorers_are_named(tmp_path: Path) -> None:
    make, outputs, *_ = CASES["gqa"]
    assert metrics(make(tmp_path), outputs, tmp_path)["other_scorers"] == {"lmms-eval": 1.0}
