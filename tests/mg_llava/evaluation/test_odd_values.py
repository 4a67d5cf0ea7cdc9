"""Every kind on files whose every field has an odd value: read, asked, scored, written, scored again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mg_llava.evaluation import (
    GQA,
    MME,
    MMVP,
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
    ShortAnswer,
    TallyQA,
    TextVQA,
    VQAv2,
    YesNo,
)
from mg_llava.evaluation.pictures import find_boxes
from mg_llava.evaluation.predictions import PredictionFiles
from mg_llava.evaluation.scoring import finish, rescore
from mg_llava.evaluation.spreadsheet import write_spreadsheet
from xtuner.config import load_config
from xtuner.errors import ProblemsError, XTunerError
from xtuner.registry import build

ENCODED = "iVBOR" + "A" * 100
OUTPUTS = (
    *("A", "yes", "2", "图中有两只狗。", "", "=1+2", "[0.1, 0.2, 0.3, 0.4]"),
    *("\x0bcontrol\u2028 \ud7ff", "nan", "B" * 40_000),
)
"""What models say; questions get them in turn."""


def lines(path: Path, rows: list[Any]) -> None:
    # an empty line, and the mark that some editors put first
    text = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text(f"\ufeff{text}\n", encoding="utf-8")


def tsv(kind: type[Benchmark], header: str, *rows: str, **arguments: Any) -> Callable[[Path], Benchmark]:
    def make(folder: Path) -> Benchmark:
        (folder / "t.tsv").write_text("\ufeff" + "\n".join([header, *rows]) + "\n", encoding="utf-8")
        return kind(name="t", data_root=str(folder), data_file="t.tsv", **arguments)

    return make


def jsonl(
    kind: type[Benchmark], rows: list[Any], more: dict[str, Any], **arguments: Any
) -> Callable[[Path], Benchmark]:
    def make(folder: Path) -> Benchmark:
        lines(folder / "t.jsonl", rows)
        for name, content in more.items():
            if name.endswith(".jsonl"):
                lines(folder / name, content)
            else:
                (folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        return kind(name="t", data_root=str(folder), data_file="t.jsonl", image_folder="", **arguments)

    return make


def listed(kind: type[Benchmark], content: Any, name: str = "t.json", **arguments: Any) -> Callable[[Path], Benchmark]:
    def make(folder: Path) -> Benchmark:
        (folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        return kind(name="t", data_root=str(folder), data_file=name, image_folder="", **arguments)

    return make


def mmvp(folder: Path) -> Benchmark:
    header = "Index,Question,Options,Correct Answer"
    rows = [header, "1,狗在哪里？,(a) 左 (b) 右,(a)", "2.0,12,(a) 1 (b) 2,", "1,q,(a) x (b) y,(B)"]
    (folder / "Questions.csv").write_text("\n".join(rows), encoding="utf-8")
    return MMVP(name="t", data_root=str(folder), data_file="Questions.csv", image_folder="")


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
KINDS: dict[str, Callable[[Path], Benchmark]] = {
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


class TestPictures:
    """MMMU: several pictures, named in question and options."""

    HEADER = "index\timage\tquestion\tA\tB\tanswer\tsplit"

    def bench(self, folder: Path, *rows: str, **arguments: Any) -> Benchmark:
        return tsv(MultipleChoice, self.HEADER, *rows, **arguments)(folder)

    def test_each_stands_where_it_is_named(self, tmp_path: Path) -> None:
        first, second = f"{ENCODED}1", f"{ENCODED}2"
        bench = self.bench(
            tmp_path,
            f"1\t['{first}', '{second}']\tIs <image 2> like <image 1>?\tyes <image 2>\tno\tA\tvalidation",
            f"2\t['{first}', '{second}']\tWhich? <image  2>\tx\ty\tA\tvalidation",
            f"3\t{first}\tWhich is in <image 1>?\tx\ty\tA\tvalidation",
        )
        words, pictures = bench.place_pictures(bench.questions()[0], bench.prompt(bench.questions()[0]))
        assert words.startswith("Is <image> like <image>?\nA. yes <image>\nB. no")
        assert [picture.encoded for picture in pictures] == [second, first, second]
        # one that is not named comes first
        words, pictures = bench.place_pictures(bench.questions()[1], bench.prompt(bench.questions()[1]))
        assert words.startswith("<image>\nWhich? <image>\n") and [one.encoded for one in pictures] == [first, second]
        words, pictures = bench.place_pictures(bench.questions()[2], bench.prompt(bench.questions()[2]))
        assert words.startswith("Which is in <image>?") and len(pictures) == 1

    def test_a_picture_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        bench = self.bench(tmp_path, f"1\t{ENCODED}\tIs <image 2> red?\tx\ty\tA\tdev")
        with pytest.raises(XTunerError, match="names <image 2>, but its row has 1 pictures"):
            bench.place_pictures(bench.questions()[0], bench.prompt(bench.questions()[0]))

    def test_only_the_split_that_counts(self, tmp_path: Path) -> None:
        rows = [f"{number}\t{ENCODED}\tq\tx\ty\tA\t{split}" for number, split in enumerate(("dev", "validation"))]
        assert [one.id for one in self.bench(tmp_path, *rows, split="validation").questions()] == ["1"]
        with pytest.raises(XTunerError, match="no row of split 'test'; it has: dev, validation"):
            self.bench(tmp_path, *rows, split="test").questions()


class TestBadRows:
    def test_all_are_named_at_once(self, tmp_path: Path) -> None:
        rows = ["1\t\tq\tx\ty\tA\tdev", "2\t\t\tx\ty\tA\tdev", "\t\tq\t\ty\tA\tdev"]
        bench = tsv(MultipleChoice, TestPictures.HEADER, *rows)(tmp_path)
        with pytest.raises(ProblemsError) as error:
            bench.questions()
        assert "2 problems in" in str(error.value) and "t.tsv" in str(error.value)
        assert "row 2: no question" in str(error.value) and "row 3: no index, A" in str(error.value)

    def test_of_many_the_first(self, tmp_path: Path) -> None:
        bench = jsonl(YesNo, [{"question_id": number, "text": None} for number in range(50)], {})(tmp_path)
        with pytest.raises(ProblemsError, match="question 1: no image, text among question_id") as error:
            bench.questions()
        assert "and 30 rows more" in str(error.value) and len(error.value.problems) == 21

    def test_a_row_with_too_many_cells(self, tmp_path: Path) -> None:
        bench = tsv(MultipleChoice, "index\tquestion\tA\tB", "1\tq\tx\ty", "2\tq\tx\ty\tz")(tmp_path)
        with pytest.raises(XTunerError, match="line 3"):
            bench.questions()

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ({"bbox": [10, 0, 5, 10], "width": 20, "height": 20}, "not a width and height"),
            ({"bbox": [1, 2, 3], "width": 20, "height": 20}, "question 1: bbox \\[1, 2, 3\\]"),
            ({"bbox": [0, 0, 1, 1], "width": 0, "height": 20}, "picture of 0 x 20"),
            ({"bbox": "x", "width": 20, "height": 20}, "bbox 'x'"),
        ],
    )
    def test_refcoco_boxes(self, tmp_path: Path, row: dict[str, Any], message: str) -> None:
        with pytest.raises(XTunerError, match=message):
            jsonl(RefCOCO, [{"image": "a.png", "sent": "dog", **row}], {})(tmp_path).questions()

    def test_an_mmvp_index_that_is_no_number(self, tmp_path: Path) -> None:
        bench = mmvp(tmp_path)
        path = tmp_path / "Questions.csv"
        path.write_text(path.read_text(encoding="utf-8").replace("\n2.0,", "\nzwei,"), encoding="utf-8")
        with pytest.raises(XTunerError, match="Index is 'zwei', expected a number"):
            bench.questions()


def test_refcoco_finds_pictures_below_its_folder(tmp_path: Path) -> None:
    """Files in circulation hold paths from where their own scripts ran."""
    row = {"image": "data/coco/train2014/a.jpg", "sent": "dog", "bbox": [0, 0, 1, 1], "width": 2, "height": 2}
    lines(tmp_path / "t.jsonl", [row])
    bench = RefCOCO(name="t", data_root=str(tmp_path), data_file="t.jsonl", image_folder="coco")
    (tmp_path / "coco" / "train2014").mkdir(parents=True)
    (tmp_path / "coco" / "train2014" / "a.jpg").touch()
    (question,) = bench.questions()
    assert question.pictures[0].key == "train2014/a.jpg"
    assert question.pictures[0].path == str(tmp_path / "coco" / "train2014" / "a.jpg")


class TestBoxes:
    """Which boxes belong to a question's picture."""

    ROWS = (
        f"3\t{ENCODED}\tq\tx\ty\tA\tdev",
        "1000003\t3\tq\ty\tx\tB\tdev",
        f"5\t['{ENCODED}', '{ENCODED}']\t<image 2>\ty\tx\tB\tdev",
    )

    @staticmethod
    def record(key: str, side: float) -> dict[str, Any]:
        return {"id": key, "boxes": [[0, 0, side, side]], "labels": ["dog"], "scores": [0.5]}

    def test_a_rotation_has_those_of_its_picture(self, tmp_path: Path) -> None:
        bench = tsv(MultipleChoice, TestPictures.HEADER, *self.ROWS, box_json_path="boxes.json")(tmp_path)
        records = [self.record("3", 3), self.record("5_1", 1), self.record("5_2", 2)]
        (tmp_path / "boxes.json").write_text(json.dumps(records))
        found = [[find_boxes(bench.boxes, one, picture) for picture in one.pictures] for one in bench.questions()]
        assert [[record.found.boxes[0, 2] for record in records if record] for records in found] == [[3], [3], [1, 2]]

    def test_its_own_come_first(self, tmp_path: Path) -> None:
        bench = tsv(MultipleChoice, TestPictures.HEADER, *self.ROWS, box_json_path="boxes.json")(tmp_path)
        (tmp_path / "boxes.json").write_text(json.dumps([self.record("3", 3), self.record("1000003", 7)]))
        rotated = bench.questions()[1]
        record = find_boxes(bench.boxes, rotated, rotated.pictures[0])
        assert record is not None and record.found.boxes[0, 2] == 7

    def test_mmbench_test_reads_its_own_file(self) -> None:
        """The original reads the boxes of the test set for another set's questions."""
        entries = load_config("fuse_vicuna7b_clip_L_14_336_sft_padding").benchmarks
        made = {entry["name"]: build(entry) for entry in entries}
        assert made["mmbench_test"].data_path.endswith("MMBench_TEST_EN.tsv")
        assert made["mmbench_test"].box_path.endswith("boxes/mmbench_test.json")
        assert len({one.box_path for one in made.values()}) == len(made)


def test_without_answers_predictions_are_written_and_it_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = tsv(MultipleChoice, "index\tquestion\tA\tB", "1\tq\tx\ty")(tmp_path)
    files = PredictionFiles(tmp_path / "out", {})
    files.prepare()
    predictions = [bench.predict(bench.questions()[0], "p", "B")]
    files.add(predictions)
    metrics = finish(bench, files, predictions, None)
    assert metrics["overall"] is None and metrics["num_without_answer"] == 1
    assert "t: not scored" in " ".join(capsys.readouterr().err.split())
    assert json.loads((tmp_path / "out" / "predictions.jsonl").read_text())["parsed"] == "B"
    assert (tmp_path / "out" / "t.xlsx").exists()
