"""Every other benchmark of the golden data: prompts, files, and all recorded metrics with strict_reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mg_llava.evaluation import (
    MME,
    MMVP,
    Benchmark,
    ChartQA,
    DocVQA,
    HallusionBench,
    MathVista,
    MMVet,
    MultipleChoice,
    Prediction,
)
from tests.mg_llava.evaluation.benchmarks.test_golden import GOLDEN, IMAGES, record
from tests.mg_llava.evaluation.benchmarks.test_golden import benchmark as first_kinds

KINDS: dict[str, tuple[type[Benchmark], dict[str, Any]]] = {
    "chartqa": (ChartQA, {"data_file": ["test_human.json", "test_augmented.json"], "image_folder": IMAGES}),
    "docvqa": (DocVQA, {"data_file": "DocVQA_VAL.tsv"}),
    "hallusion": (HallusionBench, {"data_file": "HallusionBench.tsv"}),
    "mathvista": (MathVista, {"data_file": "testmini.json", "image_folder": IMAGES}),
    "mc_forms": (MultipleChoice, {"data_file": "forms.tsv"}),
    "mme": (MME, {"data_file": "MME.tsv"}),
    "mmvet": (MMVet, {"data_file": "llava-mm-vet.jsonl", "image_folder": IMAGES}),
    "mmvp": (MMVP, {"data_file": "Questions.csv", "image_folder": IMAGES}),
}
FIRST = ("gqa", "mmbench_circular", "pope", "textvqa", "vqav2")


def benchmark(name: str, strict: bool = True) -> Benchmark:
    if name in FIRST:
        bench = first_kinds(name)
        bench.strict_reference = strict
        return bench
    kind, arguments = KINDS[name]
    return kind(name=name, data_root=str(GOLDEN / name), strict_reference=strict, **arguments)


def predictions(name: str, bench: Benchmark) -> list[Prediction]:
    outputs = [row["prediction"] for row in record(name)["predictions"]]
    # what was recorded is of the questions with a picture
    questions = [question for question in bench.questions() if question.pictures]
    return [
        bench.predict(question, bench.prompt(question), output)
        for question, output in zip(questions, outputs, strict=True)
    ]


def scores(name: str, strict: bool = True) -> dict[str, Any]:
    bench = benchmark(name, strict)
    return bench.score(predictions(name, bench))


@pytest.mark.parametrize("name", ["docvqa", "hallusion", "mathvista", "mme", "mmvet", "mmvp"])
def test_prompts_are_the_originals(name: str) -> None:
    bench = benchmark(name)
    assert bench.missing_files() == []
    assert [f"USER: <image>\n{bench.prompt(question)} ASSISTANT:" for question in bench.questions()] == [
        item["prompt"] for item in record(name)["items"]
    ]


class TestStrictReference:
    def test_option_letters(self) -> None:
        recorded = record("mc_forms")["returned"]
        score = scores("mc_forms")
        assert score["overall"] == recorded.pop("Average")
        assert score["groups"]["category"] == recorded

    def test_chartqa(self) -> None:
        assert scores("chartqa")["overall"] == pytest.approx(record("chartqa")["returned"]["Acc"])
        bench = benchmark("chartqa")
        rows = [row for text in record("chartqa")["files"].values() for row in json.loads(text)]
        recorded = {row["query"]: row["score"] for row in rows}
        pairs = bench.pairs(predictions("chartqa", bench))
        assert {question.text: bool(one.hit) for question, one in pairs} == recorded

    def test_docvqa(self) -> None:
        score = scores("docvqa")
        assert score["overall"] * 100 == pytest.approx(record("docvqa")["returned"]["val"])
        assert score["groups"]["split"]["val"] == score["overall"]

    def test_mme(self) -> None:
        recorded = record("mme")["returned"]
        score = scores("mme")
        assert score["perception"] == recorded.pop("perception")
        assert score["cognition"] == recorded.pop("reasoning")
        assert score["points"] == recorded
        assert score["overall"] == (1250 + 450) / 2800

    def test_hallusion_bench(self) -> None:
        recorded = record("hallusion")["returned"]
        score = scores("hallusion")
        for name, groups in (("aAcc", "groups"), ("fAcc", "fAcc_groups"), ("qAcc", "qAcc_groups")):
            found = {"Overall": score[name], **score[groups]["category"], **score[groups]["l2-category"]}
            assert {key: 100 * value for key, value in found.items()} == pytest.approx(
                dict(zip(recorded["split"], recorded[name], strict=True))
            )

    @pytest.mark.parametrize(
        ("name", "expected"),
        [("mmbench_circular", 1.0), ("pope", 2 / 3), ("textvqa", 0.975), ("gqa", 0.75), ("vqav2", None)],
    )
    def test_kinds_where_it_changes_nothing(self, name: str, expected: float | None) -> None:
        found = scores(name, strict=True)["overall"]
        assert found == (None if expected is None else pytest.approx(expected))
        assert found == scores(name, strict=False)["overall"]


class TestSoundDefault:
    def test_option_letters(self) -> None:
        # all that name C alone; not CC, C and D, A or C, E, "", Car, CD
        assert scores("mc_forms", strict=False)["overall"] == 12 / 19

    def test_chartqa_knows_zero_and_thousands(self) -> None:
        score = scores("chartqa", strict=False)
        assert score["groups"]["split"] == {"test_human": 1.0, "test_augmented": 0.5} and score["overall"] == 0.75

    def test_hallusion_bench_asks_without_a_picture_too(self) -> None:
        assert len(benchmark("hallusion", strict=False).questions()) == 14
        assert len(benchmark("hallusion", strict=True).questions()) == 13

    def test_mmvp_needs_both_of_a_pair(self) -> None:
        # (a) right, b wrong: pair 1 wrong; yes is the text of (a): right, alone in its pair, which counts apart
        score = scores("mmvp", strict=False)
        assert score["overall"] == 0.0 and score["accuracy"] == pytest.approx(2 / 3)
        assert score["num_incomplete_groups"] == 1

    def test_mathvista(self) -> None:
        # right answers are 3, 1.3, 3.0, 3.00, 3; given 3, B (1.3), 1.2, 1.23, [1, 2]
        assert scores("mathvista", strict=False)["overall"] == 2 / 5

    def test_mmvet_is_not_scored_without_a_judge(self) -> None:
        assert scores("mmvet", strict=False)["overall"] is None


@pytest.mark.parametrize(
    ("name", "file", "recorded"),
    [("mmvet", "upload.json", "upload.json"), ("mmvp", "answers.jsonl", "ans.jsonl")],
)
def test_files_for_the_authors_scripts(name: str, file: str, recorded: str, tmp_path: Path) -> None:
    bench = benchmark(name)
    assert bench.write_files(str(tmp_path), predictions(name, bench)) == [str(tmp_path / file)]
    assert (tmp_path / file).read_text(encoding="utf-8") == record(name)["files"][recorded]


def test_mathvista_answers_are_those_of_the_authors_script(tmp_path: Path) -> None:
    bench = benchmark("mathvista")
    (path,) = bench.write_files(str(tmp_path), predictions("mathvista", bench))
    assert Path(path).read_text(encoding="utf-8") == record("mathvista")["files"]["ans.jsonl"]
