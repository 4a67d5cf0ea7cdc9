"""Evaluation during a real training on two ranks, DDP and ZeRO-3: against trainings without, and `xtuner test`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.mg_llava.evaluation.run.val_ranks import STEPS, options
from tools.tiny_world import make
from xtuner.cli import main
from xtuner.log import console
from xtuner.model.files.weight_files import read_state_dict

ROOT = Path(__file__).parents[4]
pytestmark = [pytest.mark.multi_process, pytest.mark.slow]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "world"
    make.make_world(folder, 0, 24, console)
    return folder


@pytest.fixture(scope="module")
def runs(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One launch of two ranks: four trainings of a few steps, 40 seconds."""
    folder = tmp_path_factory.mktemp("runs")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launch, "-m", "tests.mg_llava.evaluation.run.val_ranks", str(world), str(folder)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("case", ["ddp", "zero3"])
class TestRanks:
    def test_training_is_the_same_bit_for_bit(self, runs: Path, case: str) -> None:
        without, validated = (read_state_dict(runs / name / f"iter_{STEPS}.pth") for name in (case, f"{case}_val"))
        assert set(without) == set(validated)
        assert all(torch.equal(validated[name], tensor) for name, tensor in without.items())

    def test_answers_are_those_of_the_checkpoint(self, runs: Path, world: Path, tmp_path: Path, case: str) -> None:
        checkpoint = runs / f"{case}_val" / f"iter_{STEPS}.pth"
        settings = [f"{key}={value}" for key, value in options(world).items()]
        command = ["test", "tiny_sft", "--checkpoint", str(checkpoint), "--limit", "7", "--work-dir", str(tmp_path)]
        assert main([*command, "--cfg-options", *settings]) == 0
        during = runs / f"{case}_val" / "validation" / f"step_{STEPS}" / "tiny_world" / "predictions.jsonl"
        assert during.read_text() == (tmp_path / "tiny_world" / "predictions.jsonl").read_text()
        answers = [json.loads(line)["output"] for line in during.read_text().splitlines()]
        assert len(answers) == 7 and any(answers)

    def test_scores_reach_the_scalars(self, runs: Path, case: str) -> None:
        file = next((runs / f"{case}_val").glob("*/vis_data/scalars.json"))
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        found = [(row["step"], row["val/tiny_world"]) for row in rows if "val/tiny_world" in row]
        steps = (STEPS // 2, STEPS)
        folders = [runs / f"{case}_val" / "validation" / f"step_{step}" / "tiny_world" for step in steps]
        scores = [json.loads((folder / "metrics.json").read_text())["overall"] for folder in folders]
        assert found == list(zip(steps, scores, strict=True))
