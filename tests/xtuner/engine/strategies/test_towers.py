"""Trained encoders on two CPU ranks, of which one or none has pictures, against one process over the joined batch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.xtuner.engine.pictured import make_parts
from tests.xtuner.engine.strategies.tower_ranks import CASES, STRATEGIES, model_node, train_towers
from xtuner.model.files.weight_files import read_state_dict
from xtuner.registry import build

ROOT = Path(__file__).parents[4]
MOVED = "low_res_encoder.clip.encoder.layers.1.mlp.fc1.weight"
pytestmark = [pytest.mark.multi_process, pytest.mark.slow]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("towers")
    make_parts(folder / "parts")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launch, "-m", "tests.xtuner.engine.strategies.tower_ranks", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for case, arguments in CASES.items():
        train_towers(folder / f"plain_{case}", folder / "parts", None, 4, **arguments)
    return folder


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return read_state_dict(folder / f"iter_{step}.pth")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_equals_one_process_over_the_joined_batch(runs: Path, strategy: str, case: str) -> None:
    for step in (1, 2, 3):
        ours, plain = weights(runs / f"{strategy}_{case}", step), weights(runs / f"plain_{case}", step)
        assert set(ours) == set(plain)
        for name, tensor in plain.items():
            torch.testing.assert_close(ours[name], tensor, atol=1e-6, rtol=0, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_partly_trained_model_is_read_back_whole(runs: Path, strategy: str) -> None:
    """The trained weights from the checkpoint, the frozen ones of the same parts from their own files."""
    node = model_node(runs / "parts", **CASES["some"])
    expected = build(node)
    expected.load_checkpoint(runs / "plain_some" / "iter_3.pth", required=expected.trainable)
    found = build(node)
    found.load_checkpoint(runs / f"{strategy}_some" / "iter_3.pth", required=found.trainable)
    ours, plain = found.full_state_dict(), expected.full_state_dict()
    assert not torch.equal(plain[MOVED], build(node).full_state_dict()[MOVED])
    for name, tensor in plain.items():
        torch.testing.assert_close(ours[name], tensor, atol=1e-6, rtol=0, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_average_equals_that_of_one_process(runs: Path, strategy: str) -> None:
    ours, plain = (read_state_dict(runs / f"{who}_rates" / "ema" / "iter_3.pth") for who in (strategy, "plain"))
    assert set(ours) == set(plain)
    for name, tensor in plain.items():
        torch.testing.assert_close(ours[name], tensor, atol=1e-6, rtol=0, msg=lambda m, name=name: f"{name}: {m}")


def test_every_trained_weight_moved(runs: Path) -> None:
    first, last = (weights(runs / "plain_whole", step) for step in (1, 3))
    still = [name for name, value in first.items() if torch.equal(value, last[name])]
    assert all("post_layernorm" in name for name in still)
