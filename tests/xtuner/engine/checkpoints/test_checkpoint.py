from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from xtuner.engine.checkpoints.checkpoint import CheckpointFolder, capture_rng, restore_rng
from xtuner.engine.checkpoints.integrity import TRAINER_FILE
from xtuner.errors import XTunerError
from xtuner.model.files.checkpoints import save_file_atomic


def save(folder: CheckpointFolder, step: int) -> Path:
    path = folder.path(step)
    save_file_atomic({"state_dict": {}, "optimizer": {}, "trainer": {"step": step}}, path)
    folder.commit(path)
    return path


class TestCheckpointFolder:
    def test_keeps_the_newest(self, tmp_path: Path) -> None:
        folder = CheckpointFolder(tmp_path, keep=2)
        for step in (2, 9, 10):
            save(folder, step)
        assert [path.name for path in folder.complete()] == ["iter_9.pth", "iter_10.pth"]

    def test_new_run_in_an_old_folder_keeps_its_own(self, tmp_path: Path) -> None:
        save(CheckpointFolder(tmp_path), 500)
        assert save(CheckpointFolder(tmp_path, keep=1), 3).exists()
        assert CheckpointFolder(tmp_path).latest() == tmp_path / "iter_3.pth"

    def test_pointer_survives_a_move(self, tmp_path: Path) -> None:
        before = tmp_path / "before"
        save(CheckpointFolder(before), 4)
        before.rename(tmp_path / "after")
        assert CheckpointFolder(tmp_path / "after").latest() == tmp_path / "after" / "iter_4.pth"

    def test_half_written_is_never_latest(self, tmp_path: Path) -> None:
        folder = CheckpointFolder(tmp_path)
        whole = save(folder, 1)
        cut = folder.path(2)
        cut.write_bytes(whole.read_bytes()[:-20])
        sharded = folder.path(3)
        sharded.mkdir()
        assert folder.latest() == whole
        (sharded / TRAINER_FILE).touch()
        (tmp_path / "last_checkpoint").unlink()
        assert folder.latest() == sharded

    def test_finds_what_resume_names(self, tmp_path: Path) -> None:
        folder = CheckpointFolder(tmp_path)
        assert folder.find("auto") is None
        path = save(folder, 1)
        assert folder.find("auto") == folder.find(str(path)) == path
        cut = folder.path(2)
        cut.write_bytes(b"PK")
        with pytest.raises(XTunerError, match="truncated"):
            folder.find(str(cut))


def test_random_states_go_through_safe_loading(tmp_path: Path) -> None:
    save_file_atomic(capture_rng(), tmp_path / "rng.pt")
    expected = random.random(), np.random.rand(), torch.rand(3)
    restore_rng(torch.load(tmp_path / "rng.pt", weights_only=True))
    found = random.random(), np.random.rand(), torch.rand(3)
    assert found[:2] == expected[:2] and torch.equal(found[2], expected[2])
