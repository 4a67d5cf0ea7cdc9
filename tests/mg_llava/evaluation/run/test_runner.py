"""The evaluation runner on a tiny model: same answers at every batch size, resumable, honest about what is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mg_llava.evaluation import EvaluationRunner, Prediction
from mg_llava.evaluation.results.predictions import PredictionFiles
from mg_llava.inference.assistant import Assistant
from tests.mg_llava.evaluation.world import FACTS, bench, make_world, runner
from tests.tiny_assistant import tiny_assistant
from xtuner.errors import XTunerError


@pytest.fixture(scope="module")
def assistant(tmp_path_factory: pytest.TempPathFactory) -> Assistant:
    return tiny_assistant(tmp_path_factory.mktemp("parts"))[0]


@pytest.fixture
def world(tmp_path: Path) -> Path:
    return make_world(tmp_path / "world")


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


class TestRun:
    def test_batches_of_many_answer_as_batches_of_one(self, assistant: Assistant, world: Path, tmp_path: Path) -> None:
        metrics = {size: runner(assistant, size).run(bench(world), tmp_path / str(size), FACTS) for size in (1, 3, 7)}
        texts = {size: (tmp_path / str(size) / "predictions.jsonl").read_bytes() for size in metrics}
        assert texts[1] == texts[3] == texts[7]
        assert metrics[1] == metrics[3] == metrics[7]

    def test_what_is_written(
        self, assistant: Assistant, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        metrics = runner(assistant).run(bench(world), tmp_path / "out", FACTS)
        rows = lines(tmp_path / "out")
        assert [row["id"] for row in rows] == [f"q{number}" for number in range(7)]
        assert rows[0]["prompt"] == "<image>\nIs it red ?" and rows[4]["prompt"] == "w6 w7"
        assert set(rows[0]) == {"id", "prompt", "output", "parsed", "hit"}
        assert any(row["output"] for row in rows)
        assert metrics == json.loads((tmp_path / "out" / "metrics.json").read_text())
        assert metrics["overall"] == sum(row["hit"] for row in rows) / 7
        assert set(metrics["groups"]["kind"]) == {"even", "odd"}
        assert metrics["num_questions"] == 7 and metrics["num_failed"] == 0
        # pictures 1 (questions 1) and the question without a picture
        assert metrics["num_without_boxes"] == 2
        assert "2 of 7 questions were asked without boxes" in " ".join(capsys.readouterr().err.split())
        assert metrics["checkpoint"] == "iter_1.pth" and metrics["prompt_template"] == "vicuna"

    def test_boxes_reach_the_model(self, assistant: Assistant, world: Path, tmp_path: Path) -> None:
        seen: list[int] = []
        generate = assistant.generate

        def spy(prompts: list[Any], *arguments: Any, **more: Any) -> list[str]:
            seen.extend(sum(len(boxes) for boxes in prompt.boxes) for prompt in prompts)
            return generate(prompts, *arguments, **more)

        run = runner(assistant)
        run.asker.assistant.generate = spy  # type: ignore[attr-defined]
        run.run(bench(world), tmp_path / "out", FACTS)
        assert sorted(seen) == [0, 0, 2, 2, 2, 2, 2]

    def test_limit(self, assistant: Assistant, world: Path, tmp_path: Path) -> None:
        assert runner(assistant).run(bench(world), tmp_path / "out", FACTS, limit=2)["num_questions"] == 2
        # going on to all asks only the rest and ends with the same file as all at once
        runner(assistant).run(bench(world), tmp_path / "out", FACTS)
        runner(assistant).run(bench(world), tmp_path / "once", FACTS)
        assert lines(tmp_path / "out") == lines(tmp_path / "once")


class TestResume:
    def test_a_killed_evaluation_ends_with_the_same_file(
        self, assistant: Assistant, world: Path, tmp_path: Path
    ) -> None:
        whole, cut = tmp_path / "whole", tmp_path / "cut"
        metrics = runner(assistant).run(bench(world), whole, FACTS)
        runner(assistant).run(bench(world), cut, FACTS)
        written = (whole / "predictions.jsonl").read_bytes()
        # killed in the fourth line; another process had got the last two
        (cut / "predictions.jsonl").write_bytes(written[: written.index(b'"q3"') + 20])
        (cut / "predictions.rank1.jsonl").write_bytes(written[written.index(b'{"id": "q5"') :])
        run = runner(assistant)
        asked: list[int] = []
        generate = run.asker.assistant.generate  # type: ignore[attr-defined]

        def spy(prompts: list[Any], *arguments: Any, **more: Any) -> list[str]:
            asked.append(len(prompts))
            return generate(prompts, *arguments, **more)

        run.asker.assistant.generate = spy  # type: ignore[attr-defined]
        assert run.run(bench(world), cut, FACTS) == metrics
        assert sum(asked) == 2
        assert (cut / "predictions.jsonl").read_bytes() == written
        assert not (cut / "predictions.rank1.jsonl").exists()

    def test_answers_of_another_checkpoint_are_not_taken(
        self, assistant: Assistant, world: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "out"
        runner(assistant).run(bench(world), out, FACTS)
        old = (out / "predictions.jsonl").read_text().replace('"output": "', '"output": "old ')
        (out / "predictions.jsonl").write_text(old)
        runner(assistant).run(bench(world), out, {**FACTS, "checkpoint": "iter_2.pth"})
        assert "old " not in (out / "predictions.jsonl").read_text()
        assert (out / "predictions.previous.jsonl").read_text() == old


class TestMissing:
    def test_a_missing_picture_counts_as_wrong_and_is_tried_again(
        self, assistant: Assistant, world: Path, tmp_path: Path
    ) -> None:
        picture = world / "images" / "1.png"
        content = picture.read_bytes()
        picture.unlink()
        metrics = runner(assistant).run(bench(world), tmp_path / "out", FACTS)
        assert metrics["num_failed"] == 1
        row = lines(tmp_path / "out")[1]
        assert row["output"] is None and row["hit"] == 0.0 and "1.png" in row["error"]
        picture.write_bytes(content)
        assert runner(assistant).run(bench(world), tmp_path / "out", FACTS)["num_failed"] == 0

    def test_no_picture_at_all_is_an_error(self, assistant: Assistant, world: Path, tmp_path: Path) -> None:
        rows = json.loads((world / "test.json").read_text())
        (world / "test.json").write_text(json.dumps([row for row in rows if "image" in row]))
        for picture in (world / "images").iterdir():
            picture.unlink()
        with pytest.raises(XTunerError, match="no question could be asked.*does not exist"):
            runner(assistant).run(bench(world), tmp_path / "out", FACTS)


def test_predictions_keep_odd_characters(tmp_path: Path) -> None:
    files = PredictionFiles(tmp_path, FACTS)
    files.prepare()
    odd = Prediction("1", '图\u2028\n"', "a\u0085b\tc", None, None)
    files.add([odd])
    assert files.read() == {"1": odd}


class TestAfterwards:
    def test_metrics_say_what_they_are_of(self, assistant: Assistant, world: Path, tmp_path: Path) -> None:
        metrics = runner(assistant).run(bench(world), tmp_path / "out", FACTS)
        assert set(metrics["versions"]) == {"xtuner", "python", "torch", "transformers"}
        assert metrics["prompt_example"] == "<image>\nIs it red ?" and metrics["strict_reference"] is False

    def test_scored_again_without_a_model(self, assistant: Assistant, world: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        metrics = runner(assistant).run(bench(world), out, FACTS)
        written = (out / "predictions.jsonl").read_bytes()
        assert EvaluationRunner.rescore(bench(world), out) == metrics
        assert (out / "predictions.jsonl").read_bytes() == written
        # other right answers: other hits, without asking
        rows = json.loads((world / "test.json").read_text())
        for row, line in zip(rows, lines(out), strict=True):
            row["answer"] = line["output"] or "none"
        (world / "test.json").write_text(json.dumps(rows))
        assert EvaluationRunner.rescore(bench(world), out)["overall"] > metrics["overall"]

    def test_nothing_to_score_again(self, world: Path, tmp_path: Path) -> None:
        with pytest.raises(XTunerError, match="holds no results to score again"):
            EvaluationRunner.rescore(bench(world), tmp_path)

    def test_report(self, assistant: Assistant, world: Path, tmp_path: Path) -> None:
        rows = json.loads((world / "test.json").read_text())
        rows[0]["question"] = "<b>bold</b> & 狗 ?"
        (world / "test.json").write_text(json.dumps(rows))
        runner(assistant).run(bench(world), tmp_path / "out", FACTS)
        page = EvaluationRunner.report(bench(world), tmp_path / "out", assistant.image_processor)
        text = page.read_text(encoding="utf-8")
        assert "<b>bold" not in text and "https:" not in text and text.count("</script>") == 2
        shown = json.loads(text.split('id="data">')[1].split("</script>")[0])
        assert shown[0]["cells"]["prompt"].startswith("<image>\n<b>bold</b> & 狗 ?")
        # 6 questions have a picture, of which there are 3; 5 of these have two boxes each
        assert sum(len(row["figures"]) for row in shown) == 6
        assert sum(len(figure["boxes"]) for row in shown for figure in row["figures"]) == 2 * 5
        made = {f"report_images/{path.name}" for path in (tmp_path / "out" / "report_images").iterdir()}
        assert len(made) == 3 and made == {figure["src"] for row in shown for figure in row["figures"]}

    def test_no_results_to_report(self, assistant: Assistant, world: Path, tmp_path: Path) -> None:
        with pytest.raises(XTunerError, match="no metrics.json"):
            EvaluationRunner.report(bench(world), tmp_path, assistant.image_processor)
