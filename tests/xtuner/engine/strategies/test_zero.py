"""DDP and ZeRO 1 to 3 on two CPU ranks against one process over the joined batch, and their resuming."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

from tests.tiny_parts import HIGH_SIZE
from tests.xtuner.engine.pictured import make_parts, train_pictured
from tests.xtuner.engine.strategies.zero_ranks import BAD_STEP
from tests.xtuner.engine.toy import train_toy
from xtuner.cli import main
from xtuner.engine.checkpoints.checkpoint import CheckpointFolder
from xtuner.model.files.base import read_base
from xtuner.model.files.pickles import restricted_loading
from xtuner.model.files.weight_files import read_state_dict

CASES = ("ddp", "zero1", "zero2", "zero3")
ROOT = Path(__file__).parents[4]
pytestmark = [pytest.mark.multi_process, pytest.mark.slow]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One launch of two ranks runs every case: 27 seconds, most of it imports and DeepSpeed's start."""
    folder = tmp_path_factory.mktemp("zero")
    make_parts(folder / "parts")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launch, "-m", "tests.xtuner.engine.strategies.zero_ranks", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    # the joined batch of 2 ranks x 2 samples
    train_toy(folder / "plain", weight_decay=0.1, max_norm=0.5, max_iters=6, save_steps=3, size=27, batch_size=4)
    train_pictured(folder / "padded", folder / "parts", None, pack=False, grad_accum=4)
    return folder


def weights(folder: Path, step: int = 6) -> dict[str, torch.Tensor]:
    return read_state_dict(folder / f"iter_{step}.pth")


def losses(folder: Path) -> list[float]:
    file = next(folder.glob("*/vis_data/scalars.json"))
    return [json.loads(line)["train/loss"] for line in file.read_text().splitlines()]


@pytest.mark.parametrize("case", CASES)
class TestRanks:
    def test_equals_one_process(self, runs: Path, case: str) -> None:
        ours, plain = weights(runs / case), weights(runs / "plain")
        assert set(ours) == set(plain)
        for name, tensor in plain.items():
            # worst seen 6e-8: sums in another order
            torch.testing.assert_close(ours[name], tensor, atol=1e-6, rtol=0)
        assert losses(runs / case) == pytest.approx(losses(runs / "plain"), abs=1e-6)

    def test_resumes_bit_for_bit_with_dropout(self, runs: Path, case: str) -> None:
        whole, resumed = weights(runs / f"{case}_whole"), weights(runs / f"{case}_resumed")
        assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())
        assert losses(runs / f"{case}_resumed") == losses(runs / f"{case}_whole")[3:]

    def test_leaves_whole_checkpoints(self, runs: Path, case: str) -> None:
        folder = CheckpointFolder(runs / case)
        assert [path.name for path in folder.complete()] == ["iter_3.pth", "iter_6.pth"]
        assert folder.latest() == runs / case / "iter_6.pth"
        assert not list((runs / case).glob(".*"))

    def test_skips_a_step_that_is_bad_on_one_rank(self, runs: Path, case: str) -> None:
        folder = runs / f"{case}_bad"
        before, bad, good = (read_state_dict(folder / f"iter_{BAD_STEP + n}.pth") for n in (-1, 0, 1))
        assert all(torch.equal(bad[name], tensor) for name, tensor in before.items())
        assert all(t.isfinite().all() for t in good.values())
        assert any(not torch.equal(good[name], tensor) for name, tensor in bad.items())
        assert [(folder / f"skipped_{rank}").read_text() for rank in (0, 1)] == ["1", "1"]


@pytest.fixture(scope="module")
def in_one_process(runs: Path) -> Path:
    """The two ranks' checkpoints, converted and resumed by one process."""
    command = [sys.executable, "-m", "tests.xtuner.engine.strategies.zero_ranks", str(runs), "--one"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return runs


@pytest.mark.parametrize("case", ["zero1", "zero2"])
def test_a_universal_checkpoint_stands_on_what_its_source_stood_on(in_one_process: Path, case: str) -> None:
    source = read_base(in_one_process / case / "iter_3.pth")
    assert source is not None and read_base(in_one_process / f"{case}_universal") == source


@pytest.mark.parametrize("case", ["zero1", "zero2"])
def test_goes_on_with_another_number_of_processes(in_one_process: Path, case: str) -> None:
    ours, expected = weights(in_one_process / f"{case}_one"), weights(in_one_process / case)
    for name, tensor in expected.items():
        # worst seen 6e-8: sums in another order
        torch.testing.assert_close(ours[name], tensor, atol=1e-6, rtol=0)


@pytest.mark.parametrize("case", ["zero1", "zero2", "zero3"])
def test_weights_are_read_as_deepspeed_joins_them(runs: Path, case: str) -> None:
    """Two parameter groups, cut up by two ranks."""
    ours = weights(runs / case)
    with restricted_loading():
        theirs = get_fp32_state_dict_from_zero_checkpoint(str(runs / case), tag="iter_6.pth")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], value) and ours[name].dtype == value.dtype for name, value in theirs.items())


@pytest.mark.parametrize("case", ["zero1", "zero2", "zero3"])
def test_a_bfloat16_run_is_exported_and_read_back_bit_for_bit(runs: Path, tmp_path: Path, case: str) -> None:
    """What `xtuner convert pth_to_hf` makes of the folder that two ranks left, and `hf_to_pth` of that."""
    checkpoint = runs / f"bf16_{case}" / "iter_3.pth"
    parts = runs / "parts"
    options = {
        "llm_name_or_path": parts / "llm",
        "visual_encoder_name_or_path": parts / "clip",
        "visual_encoder_aux_path": parts / "convnext",
        "image_size_aux": HIGH_SIZE,
        "prompt_template": "vicuna",
    }
    words = [*map(str, (checkpoint, tmp_path / "hf")), "--dtype", "bf16", "--cfg-options"]
    words += [f"{key}={value}" for key, value in options.items()]
    assert main(["convert", "pth_to_hf", "fuse_phi3_clip_L_14_336_sft_padding", *words]) == 0
    assert main(["convert", "hf_to_pth", str(tmp_path / "hf"), str(tmp_path / "back.pth")]) == 0
    back = read_state_dict(tmp_path / "back.pth")
    with restricted_loading():
        joined = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint.parent), tag=checkpoint.name)
    assert back.keys() == joined.keys()
    for name, value in joined.items():
        assert back[name].dtype == torch.bfloat16 and torch.equal(back[name], value.bfloat16()), name


def test_zero_3_is_not_converted(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "universal", str(runs / "zero3" / "iter_3.pth"), str(tmp_path / "universal")]) == 1
    assert "is a ZeRO-3 checkpoint, whose optimizer DeepSpeed does not convert exactly" in capsys.readouterr().err


def test_says_how_to_convert(runs: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", REFUSED, str(runs / "zero2" / "iter_3.pth"), str(tmp_path / "one")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    said = " ".join(done.stderr.split())
    assert "was saved by 2 processes, this run has 1" in said and "xtuner convert universal" in said


def test_packed_rows_on_two_ranks_train_as_padded_ones_on_one(runs: Path) -> None:
    """Rows bounded by tokens, ZeRO-2 and two micro-batches a step, against four padded ones without any of them."""
    assert "padding 0.0%" in next((runs / "packed_zero2").glob("*/*.log")).read_text()
    assert "padding 0.0%" not in next((runs / "padded").glob("*/*.log")).read_text()
    assert losses(runs / "packed_zero2") == pytest.approx(losses(runs / "padded"), abs=1e-5)
    ours, plain = weights(runs / "packed_zero2", 3), weights(runs / "padded", 3)
    assert set(ours) == set(plain)
    for name, tensor in plain.items():
        torch.testing.assert_close(ours[name], tensor, atol=1e-4, rtol=0, msg=name)


REFUSED = """
import sys
from pathlib import Path
from tests.xtuner.engine.toy import train_toy
from tests.xtuner.engine.strategies.zero_ranks import BAD_STEP
from xtuner.cli import main
train_toy(Path(sys.argv[2]), "deepspeed_zero2", resume=sys.argv[1], max_iters=6, size=27, batch_size=2,
          accumulative_counts=4)
"""
