"""Rows of several pictures, with other rows' pictures, with boxes, without answers; malformed ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mg_llava.evaluation import Benchmark, MultipleChoice, RefCOCO, YesNo
from mg_llava.evaluation.benchmarks.pictures import find_boxes
from mg_llava.evaluation.results.predictions import PredictionFiles
from mg_llava.evaluation.run.scoring import finish
from tests.mg_llava.evaluation.benchmarks.benchmark_files import ENCODED, jsonl, lines, mmvp, tsv
from xtuner.config import load_config
from xtuner.errors import ProblemsError, XTunerError
from xtuner.registry import build


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
        with pytest.raises(XTunerError, match="names <image 2>, but its row has 1 picture:"):
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
        assert "and 30 more rows" in str(error.value) and len(error.value.problems) == 21

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
