"""Whose sentence stands after the question, and that results say so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mg_llava.evaluation import GQA, MME, Benchmark, ChartQA, MultipleChoice, RefCOCO, YesNo
from mg_llava.evaluation.results.predictions import PredictionFiles
from mg_llava.evaluation.run.scoring import finish
from tests.mg_llava.evaluation.benchmarks.benchmark_files import jsonl, listed, tsv
from xtuner.errors import XTunerError

SHORT = "Answer the question using a single word or phrase."
MME_ROW = "1\tIs it red? Please answer yes or no.\tcolor\tyes"


def mme(folder: Path, **arguments: Any) -> Benchmark:
    return tsv(MME, "index\tquestion\tcategory\tanswer", MME_ROW, **arguments)(folder)


def prompt(bench: Benchmark) -> str:
    return bench.prompt(bench.questions()[0])


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (None, "Is it red? Please answer the question only a single word yes or no."),
        ("original", "Is it red? Please answer the question only a single word yes or no."),
        ("vlmevalkit", "Is it red? Please answer yes or no."),
        *((name, f"Is it red?\n{SHORT}") for name in ("llava", "for_llava_prompt", "lmms-eval")),
        ("Yes or no?", "Is it red? Yes or no?"),
    ],
)
def test_mme(tmp_path: Path, request_: str | None, expected: str) -> None:
    assert prompt(mme(tmp_path, request=request_)) == expected


def test_others(tmp_path: Path) -> None:
    chart = listed(ChartQA, [{"imgname": "a", "query": "q", "label": "1"}], request="lmms-eval")(tmp_path)
    assert prompt(chart) == "q\nAnswer the question with a single word."
    pope = jsonl(YesNo, [{"question_id": 1, "image": "a", "text": "q"}], {}, request="llava")(tmp_path)
    assert prompt(pope) == f"q\n{SHORT}"
    choice = tsv(MultipleChoice, "index\tquestion\tA\tB", "1\tq\tx\ty", request="vlmevalkit")(tmp_path)
    assert prompt(choice) == "q\nA. x\nB. y\nPlease select the correct answer from the options above."
    # LLaVA's file holds a request, which another one replaces
    asked = [{"question_id": 1, "image": "a", "text": f"q\n{SHORT}"}]
    assert prompt(jsonl(GQA, asked, {})(tmp_path)) == f"q\n{SHORT}"
    assert prompt(jsonl(GQA, asked, {}, request="Reply in one word.")(tmp_path)) == "q\nReply in one word."
    box = jsonl(RefCOCO, [{"image": "a", "sent": "left dog", "width": 1, "height": 1}], {}, request="Where is")
    assert prompt(box(tmp_path)) == "Where is left dog"


def test_an_unknown_name_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(XTunerError, match="request is 'lava', expected one of original, llava"):
        mme(tmp_path, request="lava")


class TestMetrics:
    def metrics(self, bench: Benchmark, folder: Path) -> dict[str, Any]:
        files = PredictionFiles(folder / "out", {})
        files.prepare()
        predictions = [bench.predict(question, bench.prompt(question), "B") for question in bench.questions()]
        files.add(predictions)
        return finish(bench, files, predictions, None)

    def test_say_whose(self, tmp_path: Path) -> None:
        found = self.metrics(mme(tmp_path, request="llava"), tmp_path)["request"]
        assert found == {"wording": "llava", "sentence": SHORT, "same_as": ["for_llava_prompt", "lmms-eval"]}

    def test_hold_both_prompts_of_mmmu(self, tmp_path: Path) -> None:
        rows = ["1\tq\tx\ty\tA", "2\tHow many?\t\t\t3"]
        bench = tsv(MultipleChoice, "index\tquestion\tA\tB\tanswer", *rows, open_questions=True)(tmp_path)
        found = self.metrics(bench, tmp_path)
        assert found["num_prompts_strict_differs"] == 1
        assert found["prompts_strict"]["prompt"] == f"How many?\n{SHORT}"
        strict = found["prompts_strict"]["strict_reference"]
        assert strict.startswith("How many?\nA. Yes\nB. No\nC. Other\nD. None\nAnswer with the option's letter")
        bench.strict_reference = True
        assert bench.prompt(bench.questions()[1]) == strict
