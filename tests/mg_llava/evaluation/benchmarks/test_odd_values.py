"""Every kind on files whose every field has an odd value: read, asked, scored, written, scored again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mg_llava.evaluation import (
    GQA,
    MME,
    OCRVQA,
    Benchmark,
    ChartQA,
    DocVQA,
    HallusionBench,
    LLaVABench,
    MathVista,
    MMVet,
    MultipleChoice,
    RefCOCO,
    SEEDBench,
    ShortAnswer,
    TallyQA,
    TextVQA,
    VizWiz,
    VQAv2,
    VStarBench,
    YesNo,
)
from mg_llava.evaluation.results.predictions import PredictionFiles
from mg_llava.evaluation.results.spreadsheet import write_spreadsheet
from mg_llava.evaluation.run.scoring import finish, rescore
from tests.mg_llava.evaluation.benchmarks.benchmark_files import ENCODED, jsonl, listed, mmvp, tsv

OUTPUTS = (
    *("A", "yes", "2", "图中有两只狗。", "", "=1+2", "[0.1, 0.2, 0.3, 0.4]"),
    *("\x0bcontrol\u2028 \ud7ff", "nan", "B" * 40_000),
)
"""What models say; questions get them in turn."""
OPEN = "index\timage\tquestion\tanswer"
EMPTY_CELLS = "\t" * 6
ASKED = [
    {"question_id": 1, "image": "a.png", "text": "狗在哪里？"},
    {"question_id": 1, "image": "a.png", "text": 12},
    {"question_id": "x/2", "image": "a.png", "text": "nan", "category": None, "label": None},
    {"question_id": 4, "image": "b.png", "text": "What? <image>", "label": "YES "},
]
ANNOTATIONS = {"annotations": [{"question_id": 1, "answers": [{"answer": 2}] * 10}, {"question_id": 4, "answers": []}]}
PICTURE = {"image": "a.png", "precision": 1.0}
CHOICES = {"image": "a.png", "choices": ["左", 2], "precision": None, "unit": None}
SEED = {
    "question_id": 1,
    "question": "狗在哪里？",
    "data_id": 7,
    "question_type_id": 1.0,
    "choice_a": 1,
    "choice_b": None,
}
KINDS: dict[str, Callable[[Path], Benchmark]] = {
    "seed_bench": listed(
        SEEDBench,
        {
            "questions": [SEED, {**SEED, "answer": "a"}, {**SEED, "data_type": "video", "choice_a": None}],
            "question_type": {"任务": 1, "x": None},
        },
    ),
    "vstar_bench": jsonl(
        VStarBench,
        [
            {"question_id": n, "image": n, "text": "狗？\n(A) 左\n (B) ", "label": label}
            for n, label in ((1, "(a)"), (1, None))
        ],
        {},
    ),
    "viz_wiz": listed(
        VizWiz,
        [
            {"image": "a.png", "question": "狗？", "answers": [{"answer": 2}, {"answer": None}], "answerable": "0"},
            {"image": "a.png", "question": 5, "answers": ["x", "=1+2"], "answerable": None, "answer_type": 3},
            {"image": 7, "question": "nan", "answers": None},
        ],
    ),
    "multiple_choice": tsv(
        MultipleChoice,
        "index\timage\tquestion\tA\tB\tanswer\tcategory",
        f"1\t{ENCODED}\t狗在哪里？\t左\t右\ta\tnan",
        EMPTY_CELLS,
        "1\t1\t12\t1.0\tNone\t\t颜色",
        "1000001\t1\tq\tx\ty\tNaN\tcolour",
        "7.0\t\tq\tx\t\tA\tcolour",
        circular=True,
    ),
    "mme": tsv(
        MME,
        "index\timage\tquestion\tanswer\tcategory\tl2-category\tx",
        f"1\t{ENCODED}\t这是狗吗？\t1\t存在\t\t",
        EMPTY_CELLS,
        "1\t1\t5\t\tcount\t\t",
        "2\t\tq\t no\tcount\t\t",
    ),
    "hallusion": tsv(
        HallusionBench,
        "index\timage\tquestion\tanswer\tcategory\tl2-category\tx",
        f"VD_图_0_0_0\t{ENCODED}\t这是狗吗？\t1\tVD\t图\t",
        "VD_图_0_0_0\t\t5\t\tVD\t图\t",
        "VS_a_0_1_0\t\tq\tno\tVS\tnan\t",
    ),
    "docvqa": tsv(DocVQA, OPEN, f"1\t{ENCODED}\t多少？\t['2', '二']", "1\t1\t5\t3.0", "x\t\tq\t"),
    "ocrvqa": tsv(OCRVQA, OPEN, f"1\t{ENCODED}\t多少？\t[2, '二']", "1\t1\t5\tnan", "x\t\tq\t3"),
    "chartqa": listed(
        ChartQA,
        [
            {"imgname": "a.png", "query": "多少？", "label": 2},
            {"imgname": "a.png", "query": 5, "label": ["狗", 2.0]},
            {"imgname": 7, "query": "q"},
        ],
    ),
    "tallyqa": listed(
        TallyQA,
        [
            {"image": "a.png", "question": "多少？", "question_id": 1, "answer": 2, "issimple": None},
            {"image": "a.png", "question": 5, "question_id": 1, "answer": "two"},
            {"image": "a.png", "question": "q", "question_id": "x", "answer": None, "issimple": False},
        ],
    ),
    "short": listed(
        ShortAnswer,
        [
            {"id": 1, "question": "多少？", "answer": 2, "kind": None, "image": None},
            {"id": 1, "question": 5, "answer": "狗", "kind": 7, "image": "a.png"},
        ],
    ),
    "refcoco": jsonl(
        RefCOCO,
        [
            {"image": "data/coco/a.png", "sent": "左边的狗", "bbox": [0, 0, 10.5, 10], "width": "20", "height": 20},
            {"image": "a.png", "sent": 7, "bbox": None, "width": 20, "height": 10},
        ],
        {},
    ),
    "pope": jsonl(YesNo, ASKED, {}),
    "gqa": jsonl(
        GQA,
        ASKED,
        {
            "a.json": {
                "1": {"question": "q", "answer": 2},
                "4": {"question": "狗？", "answer": "狗", "types": None, "semantic": None},
            }
        },
        answer_file="a.json",
    ),
    "vqav2": jsonl(VQAv2, ASKED, {"a.json": ANNOTATIONS}, answer_file="a.json"),
    "textvqa": jsonl(
        TextVQA,
        [
            {"question_id": "im", "image": "a.png", "text": "多少？\nReference OCR token: 狗"},
            {"question_id": 7, "image": "a.png", "text": 12},
        ],
        {
            "a.json": {
                "data": [
                    {"image_id": "im", "question": "多少？", "answers": [2, "二", None]},
                    {"image_id": 7, "question": 12, "answers": ["2"]},
                ]
            }
        },
        answer_file="a.json",
    ),
    "mm_vet": jsonl(
        MMVet,
        ASKED,
        {
            "a.json": {
                "v1_1": {"question": "q", "answer": 2, "capability": ["ocr", "数学"]},
                "v1_4": {"answer": "a<OR>b", "capability": None},
            }
        },
        answer_file="a.json",
    ),
    "llava_bench": jsonl(
        LLaVABench,
        ASKED,
        {
            "c.jsonl": [{"image": "a.png", "caption": ["一只狗", "two"]}],
            "a.jsonl": [{"question_id": 1, "text": "狗"}, {"question_id": 4, "text": 5}],
        },
        answer_file="a.jsonl",
        context_file="c.jsonl",
    ),
    "mmvp": mmvp,
    "mathvista": listed(
        MathVista,
        {
            "1": {"question": "多少？", "question_type": "free_form", "answer_type": "integer", "answer": 2, **PICTURE},
            "x": {"question": 5, "question_type": "multi_choice", "answer_type": "text", "answer": "左", **CHOICES},
            "3": {"question": "q", "question_type": "free_form", "answer_type": "float", "answer": None, **PICTURE},
        },
    ),
}


@pytest.mark.parametrize("name", KINDS)
class TestOddValues:
    def test_from_file_to_metrics_and_back(self, name: str, tmp_path: Path) -> None:
        bench = KINDS[name](tmp_path)
        questions = bench.questions()
        assert len({question.id for question in questions}) == len(questions)
        assert any(question.answer is None for question in questions) or name in ("short", "textvqa", "chartqa", "pope")
        assert any("狗" in bench.prompt(question) or "多" in bench.prompt(question) for question in questions)
        words = [bench.place_pictures(question, bench.prompt(question)) for question in questions]
        assert all(text.count("<image>") == len(pictures) for text, pictures in words)
        for shift in range(len(OUTPUTS)):
            folder = tmp_path / str(shift)
            files = PredictionFiles(folder, {"config": "c"})
            files.prepare()
            outputs = [OUTPUTS[(number + shift) % len(OUTPUTS)] for number in range(len(questions))]
            predictions = [
                bench.predict(question, text, output)
                for question, (text, _), output in zip(questions, words, outputs, strict=True)
            ]
            files.add(predictions)
            metrics = finish(bench, files, predictions, None)
            assert metrics["overall"] is None or 0 <= metrics["overall"] <= 1
            # what stands in the file is JSON for everyone, without NaN
            text = (folder / "metrics.json").read_text(encoding="utf-8")
            assert json.loads(text, parse_constant=pytest.fail) == metrics
            assert rescore(bench, folder) == metrics
            assert write_spreadsheet(bench, folder).stat().st_size > 0

    def test_the_spreadsheet_holds_words_not_formulas(self, name: str, tmp_path: Path) -> None:
        openpyxl = pytest.importorskip("openpyxl")
        bench = KINDS[name](tmp_path)
        files = PredictionFiles(tmp_path / "out", {})
        files.prepare()
        outputs = ["=1+2", "\x0b狗"]
        files.add([bench.predict(one, "p", outputs[number % 2]) for number, one in enumerate(bench.questions())])
        sheet = openpyxl.load_workbook(write_spreadsheet(bench, tmp_path / "out")).active
        header, first, second = list(sheet.iter_rows(max_row=3))
        assert header[0].value == "index" and header[-1].value == "prediction"
        assert (first[-1].value, first[-1].data_type, second[-1].value) == ("=1+2", "s", "狗")
        assert sheet.max_row == 1 + len(bench.questions())
