"""GQA's measures beside accuracy, worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mg_llava.evaluation import GQA
from mg_llava.evaluation.reading.gqa import distribution, is_among, steps
from mg_llava.evaluation.results.predictions import PredictionFiles
from mg_llava.evaluation.run.scoring import finish
from tests.mg_llava.evaluation.benchmarks.benchmark_files import jsonl
from xtuner.errors import XTunerError


def record(answer: str, group: str | None = None, entailed: tuple[str, ...] = (), **more: Any) -> dict[str, Any]:
    types = {"structural": "query", "semantic": "attr", "detailed": "attr"}
    return {
        **{"question": "What colour?", "answer": answer, "isBalanced": True, "types": types},
        **{"groups": {"global": group}, "entailed": list(entailed), **more},
    }


RECORDS = {
    "1": record("red", "color", ("1", "2", "3")),
    "2": record("yes"),
    # not balanced: not scored, but entailed by 1
    "3": record("no", isBalanced=False),
    "4": record("blue", "color", ("2", "gone")),
    "5": record("color", types={"structural": "query", "semantic": "attr", "detailed": "twoCommon"}),
}
CHOICES = {
    "1": {"valid": ["red", "blue"], "plausible": ["red"]},
    "2": {"valid": ["yes", "no"], "plausible": ["yes", "no"]},
    "4": {"valid": ["red", "blue"], "plausible": ["blue"]},
    "5": {"valid": [], "plausible": []},
}
ANSWERS = ("Red.", "yes", "yes", "green", "material")


def bench(folder: Path, choices: Any = CHOICES) -> GQA:
    rows = [{"question_id": key, "image": f"{key}.jpg", "text": "?"} for key in RECORDS]
    make = jsonl(GQA, rows, {"a.json": RECORDS, "c.json": choices}, answer_file="a.json", choices_file="c.json")
    found = make(folder)
    assert isinstance(found, GQA)
    return found


def results(kind: GQA, folder: Path) -> dict[str, Any]:
    predictions = [kind.predict(one, "", said) for one, said in zip(kind.questions(), ANSWERS, strict=True)]
    folder.mkdir()
    return finish(kind, PredictionFiles(folder, {}), predictions, None)


def test_by_hand(tmp_path: Path) -> None:
    """1 and 2 right of 1, 2, 4, 5. 1 entails 2 (right) and 3 (wrong): ½; 2 entails nothing, 4 is wrong.

    Valid: red, yes, and material of any question for a common attribute, not green; plausible the same.
    Distribution: of red 1 and blue 1 one and none are given: (0² + 1²) / 1 = 1, by 100.
    """
    metrics = results(bench(tmp_path), tmp_path / "out")
    assert (metrics["overall"], metrics["consistency"]) == (0.5, 0.5)
    assert (metrics["validity"], metrics["plausibility"], metrics["distribution"]) == (0.75, 0.75, 0.01)
    # 2 of the entailed 1, 2, 3 and one that nobody asks
    assert (metrics["num_entailed_questions"], metrics["num_entailed_questions_asked"]) == (4, 3)
    assert metrics["num_questions_with_choices"] == 4
    assert {"validity", "plausibility", "consistency"} <= metrics["uncertainty"].keys()
    assert "distribution" not in metrics["uncertainty"]


def test_without_choices_the_rest_is_measured(tmp_path: Path) -> None:
    found = bench(tmp_path)
    (tmp_path / "c.json").unlink()
    assert found.missing_files() == []
    metrics = results(found, tmp_path / "out")
    assert metrics["consistency"] == 0.5 and "validity" not in metrics and metrics["num_questions_with_choices"] == 0


@pytest.mark.parametrize(
    ("choices", "message"), [([], "object of questions by id"), ({"1": 3}, "question 1: expected")]
)
def test_a_file_of_choices_of_another_kind_is_named(tmp_path: Path, choices: Any, message: str) -> None:
    found = bench(tmp_path, choices)
    with pytest.raises(XTunerError, match=message):
        found.score([found.predict(found.questions()[0], "", "red")])


def test_steps_that_count() -> None:
    operations = [
        ("select", "dog (1)"),
        ("exist", "?"),
        ("query", "name"),
        ("choose name", "cat|dog"),
        ("query", "hposition"),
    ]
    assert steps({"semantic": [{"operation": name, "argument": argument} for name, argument in operations]}) == 2
    assert steps({}) == 0


def test_groups_weigh_by_their_size() -> None:
    """Colours: 2 red of which one is given: (1 − 2)² / 2 = ½, 2 questions; sizes: 1 big, given: 0, 1 question."""
    answered = [(record("red", "c"), "red"), (record("red", "c"), "x"), (record("big", "s"), "big"), (record("y"), "n")]
    assert distribution(answered) == pytest.approx(0.5 * 2 / 3 / 100)
    assert distribution([(record("y"), "n")]) is None


def test_only_common_questions_take_the_common_attributes() -> None:
    assert is_among("color", [], RECORDS["5"]) and not is_among("red", ["red"], RECORDS["5"])
    assert is_among("red", ["red"], RECORDS["1"]) and not is_among("color", ["red"], RECORDS["1"])
