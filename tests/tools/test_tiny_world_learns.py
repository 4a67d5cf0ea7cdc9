"""The whole pipeline learns to see: a short training from the shipped parts answers held-out questions."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from tools.tiny_world import ablation
from tools.tiny_world.make import make_world

STEPS = 100
"""Of each stage."""
QUESTIONS = 300
BAR = 0.6
"""Ten seeds: 78.5 % in the mean, standard deviation 3.8, least 72.7."""


@pytest.mark.slow
def test_short_training_answers_held_out_questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails when anything between a picture's bytes and the scored answer stops working, or stops learning.

    Ten seeds: `python tools/tiny_world/ablation.py --only conv_gate --seeds 10 --out work_dirs/short --limit 300
    --cfg-options max_iters=100`.
    """
    monkeypatch.chdir(tmp_path)
    manifest = make_world(ablation.WORLD, 0, 3000, Console(file=io.StringIO()))
    results = ablation.run("conv_gate", 0, tmp_path / "runs", 1, [f"max_iters={STEPS}"], QUESTIONS)
    right = results["conv_gate"]["overall"]
    assert right >= BAR, results
    assert right > manifest["majority_baseline"]["overall"] + 0.2
