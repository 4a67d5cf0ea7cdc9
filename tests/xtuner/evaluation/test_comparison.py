"""Two folders of results side by side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from xtuner.cli import main
from xtuner.errors import XTunerError
from xtuner.evaluation.comparison import compare, overall_test, write_clusters


def results(folder: Path, overall: float | None, hits: dict[str, float | None]) -> Path:
    (folder / "pope").mkdir(parents=True)
    (folder / "pope" / "metrics.json").write_text(json.dumps({"overall": overall}))
    rows = [{"id": key, "prompt": "Is it [red]?", "output": f"{hit}\u2028", "hit": hit} for key, hit in hits.items()]
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n"
    (folder / "pope" / "predictions.jsonl").write_text(text, encoding="utf-8")
    return folder


def test_flips_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = results(tmp_path / "a", 0.5, {"1": 1.0, "2": 0.0, "3": 0.0, "4": 1.0, "5": None, "6": 1.0})
    second = results(tmp_path / "b", None, {"1": 0.0, "2": 1.0, "3": 0.3, "4": 1.0, "5": 1.0})
    (one,) = compare(first, second)
    assert one.name == "pope" and one.scores == (0.5, None) and one.shared == 5
    assert [flip.id for flip in one.flips] == ["1", "2", "3"] and (one.gained, one.lost) == (2, 1)
    # −1 + 1 + 0.3 + 0 over four scored pairs
    assert one.test is not None and one.test.difference == pytest.approx(0.075) and one.test.p_value > 0.5
    assert main(["test", "--compare", str(first), str(second)]) == 0
    shown = capsys.readouterr().err
    assert "3 flips" in shown and "50.0%" in shown and "not scored" in shown


def test_questions_on_one_picture_flip_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = [str(number) for number in range(12)]
    first, second = (results(tmp_path / f"{hit}", hit, dict.fromkeys(keys, hit)) for hit in (0.0, 1.0))
    (one,) = compare(first, second)
    assert one.test is not None and one.test.p_value == pytest.approx(2 / 2**12)
    write_clusters(first / "pope", {key: str(int(key) // 6) for key in keys})
    (one,) = compare(first, second)
    assert one.test is not None and one.test.p_value == pytest.approx(0.5)


def test_over_all_benchmarks_each_counts_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    for folder, hits in ((first, (0.0, 1.0)), (second, (1.0, 0.0))):
        results(folder, 0.5, dict.fromkeys("ab", hits[0]))
        (folder / "pope").rename(folder / "gqa")
        results(folder, 0.5, dict.fromkeys("abcdefgh", hits[1]))
    test = overall_test(compare(first, second))
    assert test is not None and test.difference == pytest.approx(0.0)
    assert main(["test", "--compare", str(first), str(second)]) == 0
    shown = capsys.readouterr().err
    assert "mean of benchmarks" in shown and "p" in shown


def test_nothing_in_common(tmp_path: Path) -> None:
    with pytest.raises(XTunerError, match="no benchmark in common: found pope and none"):
        compare(results(tmp_path / "a", 1.0, {}), tmp_path / "b")


def test_predictions_are_needed(tmp_path: Path) -> None:
    first, second = results(tmp_path / "a", 1.0, {}), results(tmp_path / "b", 1.0, {})
    (second / "pope" / "predictions.jsonl").unlink()
    with pytest.raises(XTunerError, match="predictions.jsonl' is missing"):
        compare(first, second)


def test_a_config_or_two_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["test"]) == 1
    assert "no config given" in capsys.readouterr().err
