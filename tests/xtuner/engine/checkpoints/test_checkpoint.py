from __future__ import annotations

import logging
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
    folder.make_room(path) if path.exists() else None
    save_file_atomic({"state_dict": {}, "optimizer": {}, "trainer": {"step": step}}, path)
    folder.commit(path)
    return path


class TestCheckpointFolder:
    def test_keeps_the_newest(self, tmp_path: Path) -> None:
        folder = CheckpointFolder(tmp_path, keep=2)
        for step in (2, 9, 10):
            save(folder, step)
        assert [path.name for path in folder.complete()] == ["iter_9.pth", "iter_10.pth"]

    def test_another_run_is_never_touched(self, tmp_path: Path) -> None:
        """Neither removed as surplus nor written over."""
        for step in (3, 500):
            save(CheckpointFolder(tmp_path), step)
        former = {step: (tmp_path / f"iter_{step}.pth").read_bytes() for step in (3, 500)}
        folder = CheckpointFolder(tmp_path, keep=1)
        for step in (1, 2, 3):
            save(folder, step)
        assert CheckpointFolder(tmp_path).latest() == tmp_path / "iter_3.pth"
        assert (tmp_path / "iter_500.pth").read_bytes() == former[500]
        assert (tmp_path / "iter_3.pth.1").read_bytes() == former[3]
        assert {path.name for path in folder.complete()} == {"iter_3.pth", "iter_500.pth"}

    def test_a_resumed_run_goes_on_removing_its_surplus(self, tmp_path: Path) -> None:
        former = CheckpointFolder(tmp_path, keep=2)
        for step in (3, 6):
            save(former, step)
        save_file_atomic({}, tmp_path / "iter_5.pth")  # put there by a user
        folder = CheckpointFolder(tmp_path, keep=2)
        folder.adopt(tmp_path / "iter_6.pth", 6)
        save(folder, 9)
        save(folder, 12)
        assert {path.name for path in folder.complete()} == {"iter_5.pth", "iter_9.pth", "iter_12.pth"}

    def test_resumed_from_an_older_one_the_later_ones_stay(self, tmp_path: Path) -> None:
        former = CheckpointFolder(tmp_path)
        for step in (3, 6, 9):
            save(former, step)
        later = (tmp_path / "iter_6.pth").read_bytes()
        folder = CheckpointFolder(tmp_path, keep=1)
        folder.adopt(tmp_path / "iter_3.pth", 3)
        save(folder, 6)
        save(folder, 7)
        assert (tmp_path / "iter_6.pth.1").read_bytes() == later
        assert {path.name for path in folder.complete()} == {"iter_7.pth", "iter_9.pth"}

    @pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"a\0b", b"x" * 5000, b""])
    def test_pointer_that_is_no_text(
        self, tmp_path: Path, content: bytes, framework_log: list[logging.LogRecord]
    ) -> None:
        save(CheckpointFolder(tmp_path), 3)
        (tmp_path / "last_checkpoint").write_bytes(content)
        assert CheckpointFolder(tmp_path).latest() == tmp_path / "iter_3.pth"
        said = [record.getMessage() for record in framework_log if record.levelno >= logging.WARNING]
        # what may be a path names nothing that is there
        assert len(said) == (content[0] > 127 or len(content) > 4096 if content else 0)
        assert all("last_checkpoint does not hold the path" in line for line in said)

    @pytest.mark.parametrize("content", ['{"checkpoint": "iter_3', "[]", "{}", '{"checkpoint": 3}', ""])
    def test_cut_best_removes_nothing(
        self, tmp_path: Path, content: str, framework_log: list[logging.LogRecord]
    ) -> None:
        folder = CheckpointFolder(tmp_path, keep=1)
        save(folder, 3)
        (tmp_path / "best_checkpoint.json").write_text(content)
        save(folder, 6)
        assert {path.name for path in folder.complete()} == {"iter_3.pth", "iter_6.pth"}
        (said,) = [record.getMessage() for record in framework_log if record.levelno >= logging.WARNING]
        assert "best_checkpoint.json is cut off or damaged" in said and "\n" not in said

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
