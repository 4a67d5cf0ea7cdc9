"""A stream on two ranks under torchrun: each record once an epoch, and a run that goes on at its place."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.mg_llava.data.stream_ranks import BATCH, HALF, STEPS
from tests.mg_llava.hf.test_families import QUESTION, options_of
from tests.source_files import as_rows, write_source
from tests.tiny_assistant import save_picture
from tests.tiny_encoders import high_folder, low_folder
from xtuner.model.files.weight_files import read_state_dict

ROOT = Path(__file__).parents[3]
COUNT = 23
# of two shards each rank has one; of one both read all of it, and take every other record
CASES = {"parquet": 2, "webdataset": 1}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("streams")
    turns = [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": "blue cat"}]
    records = []
    for number in range(COUNT):
        save_picture(folder / "images" / f"{number}.png", number)
        records.append({"id": f"r{number}", "image": f"{number}.png", "conversations": turns})
    rows = as_rows(records, folder / "images", [])
    high = high_folder("dinov3_convnext", folder / "parts")
    options = options_of(folder, low_folder("dinov3", folder / "parts").path, high.path, high.size)[1:]
    options += ["train_dataset.type=mg_llava.data.MGLLaVAStream", "train_dataset.buffer=4", "box_json_path=None"]
    options += ["image_folder=", f"max_iters={STEPS}", f"batch_size={BATCH}", "save_steps=1", "save_total_limit=None"]
    options += ['trainable=["fusion","projector","object_encoder"]', "visualizers=[]"]
    cases = {}
    for kind, shards in CASES.items():
        path = write_source(kind, folder / f"{kind}_source", rows, whole=shards == 1)
        cases[kind] = [*options, f"data_path={path}"]
    (folder / "cases.json").write_text(json.dumps(cases))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launch, "-m", "tests.mg_llava.data.stream_ranks", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def seen(folder: Path, name: str, rank: int) -> list[str]:
    lines = (folder / f"{name}_{rank}.jsonl").read_text().splitlines()
    return [sample for line in lines for sample in json.loads(line)]


@pytest.mark.slow
@pytest.mark.multi_process
@pytest.mark.parametrize("kind", CASES)
class TestTwoRanks:
    def test_each_record_once_an_epoch(self, runs: Path, kind: str) -> None:
        first, second = (seen(runs, kind, rank) for rank in range(2))
        assert len(first) == len(second) == STEPS * BATCH
        # 11 records are of one rank, 12 of the other; then each begins its next pass, with shards drawn anew
        passes = [(first[:own], second[: COUNT - own]) for own in (11, 12)]
        assert any(
            sorted((*mine, *theirs)) == sorted(f"r{number}" for number in range(COUNT)) for mine, theirs in passes
        )

    def test_a_run_that_goes_on_sees_what_the_whole_one_did(self, runs: Path, kind: str) -> None:
        for rank in range(2):
            assert seen(runs, f"{kind}_again", rank) == seen(runs, kind, rank)[HALF * BATCH :]
        whole, again = (read_state_dict(runs / name / f"iter_{STEPS}.pth") for name in (kind, f"{kind}_again"))
        for name, weight in whole.items():
            torch.testing.assert_close(again[name], weight, atol=1e-6, rtol=0)
