"""Questions whose picture was trained on, whatever the file is called there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mg_llava.evaluation import EvaluationRunner
from mg_llava.inference.assistant import Assistant
from tests.mg_llava.evaluation.world import FACTS, bench, make_world, runner
from tests.tiny_assistant import randomize, tiny_assistant
from xtuner.errors import XTunerError
from xtuner.evaluation.contamination import marks_in_folders, picture_mark


@pytest.fixture(scope="module")
def assistant(tmp_path_factory: pytest.TempPathFactory) -> Assistant:
    return randomize(tiny_assistant(tmp_path_factory.mktemp("contamination"))[0])


def test_counted_and_scored_without(assistant: Assistant, tmp_path: Path) -> None:
    world = make_world(tmp_path / "world")
    train = tmp_path / "train" / "deep"
    train.mkdir(parents=True)
    # picture 1 is that of questions 1 only, as 4 has none; picture 0 is in the folder with one byte changed
    shutil.copy(world / "images" / "1.png", train / "other name.png")
    content = (world / "images" / "0.png").read_bytes()
    (train / "0.png").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    before = runner(assistant).run(bench(world), tmp_path / "out", FACTS)
    after = EvaluationRunner.contamination(bench(world), tmp_path / "out", [str(tmp_path / "train")])
    found = after.pop("contamination")
    assert after == json.loads(json.dumps(before))
    assert (found["num_pictures"], found["num_pictures_in_training"], found["num_questions_in_training"]) == (3, 1, 1)
    assert found["examples"] == [{"question": "q1", "file": str(train / "other name.png")}]
    rows = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    rest = [row["hit"] for row in rows if row["id"] != "q1"]
    assert found["overall_without"] == pytest.approx(sum(rest) / len(rest))
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["contamination"] == found
    # 5 of 7 have boxes: question 4 has no picture, question 1 no record
    assert before["share_with_boxes"] == pytest.approx(5 / 7)


def test_only_files_of_the_same_size_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        (tmp_path / f"{number}").write_bytes(b"x" * number)
    (tmp_path / "broken").symlink_to(tmp_path / "absent")
    opened: list[str] = []
    open_path = Path.open
    monkeypatch.setattr(Path, "open", lambda path, *more: opened.append(path.name) or open_path(path, *more))
    found = marks_in_folders([picture_mark(b"xxx"), picture_mark(b"ab")], [str(tmp_path)])
    assert found == {picture_mark(b"xxx"): str(tmp_path / "3")} and sorted(opened) == ["2", "3"]


def test_mistakes(assistant: Assistant, tmp_path: Path) -> None:
    with pytest.raises(XTunerError, match="--train-images takes folders"):
        marks_in_folders([], [str(tmp_path / "absent")])
    with pytest.raises(XTunerError, match="evaluate first"):
        EvaluationRunner.contamination(bench(make_world(tmp_path)), tmp_path / "out", [])
