"""What keeps a run from going on with a checkpoint is said, all of it at once."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.xtuner.engine.toy import ToyModel, train_toy
from xtuner.engine.checkpoints.resumable import check_resumable
from xtuner.errors import XTunerError

MARKS = {"numbers": 9, "formats": ["bfloat16"], "float32": "0a", "bfloat16": "0a", "float16": "0a"}
FACTS: dict[str, Any] = {
    "parameters": {"a": [2]},
    "optimizer": "AdamW",
    "groups": [["a"]],
    "schedule": "WarmupCosine(floor=0.0)",
    "base": {
        "checkpoint": None,
        "parts": {"llm": {"name": "a", "place": "/a", "from_checkpoint": False, "marks": MARKS}},
    },
    "global_batch": 4,
    "order": {"made_for": [2, 1], "seed": 1, "samples": 9, "checksum": 5},
    "zero_stage": 2,
    "precision": "bf16",
    "max_iters": 5,
}


def other_base(**marks: Any) -> dict[str, Any]:
    facts = FACTS["base"]["parts"]["llm"]
    return {"base": {"checkpoint": None, "parts": {"llm": {**facts, "marks": {**MARKS, **marks}}}}}


def order(**changes: int) -> dict[str, Any]:
    return {"order": {**FACTS["order"], **changes}}


def test_the_same_and_what_may_differ(framework_log: list[logging.LogRecord]) -> None:
    check_resumable(FACTS, dict(FACTS), Path("x"))
    assert not framework_log
    check_resumable(
        FACTS, {**FACTS, "zero_stage": 1, "max_iters": 7, **other_base(formats=["float32"], float32="0b")}, Path("x")
    )
    assert [record.getMessage() for record in framework_log] == [
        "x followed a schedule of 5 steps, this run has 7: the learning rate follows the new one from here."
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parameters": {"a": [3], "b": [1]}}, r"this run alone trains 1 weight, e.g. b\n"),
        ({"parameters": {"a": [3]}}, r"1 weight of another shape, e.g. a: \[2\], in this run \[3\]"),
        ({"parameters": {}}, r"that run alone trained 1 weight, e.g. a"),
        (other_base(bfloat16="0b"), "other frozen weights .*llm: other weights than those of a, expected at '/a'"),
        (other_base(numbers=8), r"llm: other weights than those of a \(9 numbers, here 8\)"),
        ({"global_batch": 8}, "4 samples per optimizer step, this run has 8"),
        (order(seed=2), "seed 1, this run has 2: the run would use samples twice"),
        (order(samples=8, checksum=6), "samples in the data: 9, this run has 8"),
        (order(checksum=6), "another sample order: the data's lengths"),
        ({"zero_stage": 3}, "ZeRO stage 2, this run has 3"),
        ({"precision": "fp32"}, "precision bf16 under DeepSpeed, this run has fp32"),
    ],
)
def test_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(XTunerError, match=f"x does not fit this run:\n(?s:.*){message}(?s:.*)pretrained_pth=x"):
        check_resumable(FACTS, {**FACTS, **changes}, Path("x"))


def test_all_at_once() -> None:
    with pytest.raises(XTunerError) as caught:
        check_resumable(FACTS, {**FACTS, **order(seed=2, samples=3), "parameters": {}}, Path("x"))
    assert str(caught.value).count("\n  - ") == 3


class OtherEmbedding(ToyModel):
    """The toy on other frozen weights."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        with torch.no_grad():
            self.embedding.weight *= 1.01


class TestRuns:
    """Resuming as a user would, with one thing changed."""

    @pytest.fixture(scope="class")
    def checkpoint(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        work_dir = tmp_path_factory.mktemp("small")
        train_toy(work_dir, max_iters=1)
        return work_dir / "iter_1.pth"

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (dict(width=8), r"1 weight of another shape, e.g. head.0.weight: \[32, 16\], in this run \[32, 8\]"),
            (dict(batch_size=3), "4 samples per optimizer step, this run has 6"),
            (dict(seed=8), "seed 7, this run has 8"),
            (dict(size=42), "samples in the data: 40, this run has 42"),
            (dict(model=OtherEmbedding), "other frozen weights .*embedding"),
        ],
    )
    def test_other_run(self, checkpoint: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(XTunerError, match=message):
            train_toy(tmp_path, resume=str(checkpoint), max_iters=1, **changes)

    def test_of_an_older_version(self, checkpoint: Path, tmp_path: Path) -> None:
        content = torch.load(checkpoint, weights_only=True)
        del content["trainer"]["order"]
        torch.save(content, tmp_path / "iter_1.pth")
        with pytest.raises(XTunerError, match="older version"):
            train_toy(tmp_path, resume="auto", max_iters=1)

    def test_no_such_checkpoint(self, tmp_path: Path) -> None:
        with pytest.raises(XTunerError, match="no such checkpoint"):
            train_toy(tmp_path, resume=str(tmp_path / "iter_5.pth"))
