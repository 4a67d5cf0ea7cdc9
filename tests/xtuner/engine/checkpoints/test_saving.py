"""Checkpoints under bad conditions: full disks, damage, background writing, best scores."""

from __future__ import annotations

import errno
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.xtuner.engine.toy import train_toy
from xtuner.engine.checkpoints import saving
from xtuner.engine.checkpoints.checkpoint import CheckpointFolder, Score
from xtuner.engine.checkpoints.integrity import TRAINER_FILE, check_bytes, check_resumable_form, damage_of, list_files
from xtuner.errors import XTunerError

SETTINGS = dict(max_iters=6, save_steps=2, size=27)


def final_weights(work_dir: Path) -> dict[str, torch.Tensor]:
    return torch.load(work_dir / "iter_6.pth", weights_only=True)["state_dict"]


def full_disk(after: int, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Lets `after` files be written, then none; returns what was asked for."""
    asked: list[Path] = []
    write = saving.write_file

    def maybe(content: Any, path: Path) -> None:
        asked.append(path)
        if len(asked) > after:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        write(content, path)

    monkeypatch.setattr("xtuner.engine.strategies.plain.write_file", maybe)
    return asked


class TestFullDisk:
    def test_former_checkpoint_stays_and_the_run_fails_at_its_end(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = full_disk(1, monkeypatch)
        with pytest.raises(
            XTunerError,
            match=r"step 6 could not be written: .*No space left.*\(\d+\.\d GB free there\)\. .*iter_2\.pth",
        ):
            train_toy(tmp_path, **SETTINGS)
        assert len(asked) == 3  # the training went on after step 4
        assert CheckpointFolder(tmp_path).latest() == tmp_path / "iter_2.pth"
        assert not list(tmp_path.glob(".iter_*"))

    def test_room_again(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write = saving.write_file
        failures = iter([True, False, False])

        def once(content: Any, path: Path) -> None:
            if next(failures):
                raise RuntimeError("[enforce fail at inline_container.cc] . PytorchStreamWriter failed writing file")
            write(content, path)

        monkeypatch.setattr("xtuner.engine.strategies.plain.write_file", once)
        train_toy(tmp_path, **SETTINGS)
        assert [path.name for path in CheckpointFolder(tmp_path).complete()] == ["iter_4.pth", "iter_6.pth"]


def test_background_writing_saves_the_same(tmp_path: Path) -> None:
    train_toy(tmp_path / "plain", **SETTINGS)
    train_toy(tmp_path / "background", async_save=True, save_total_limit=None, **SETTINGS)
    folder = CheckpointFolder(tmp_path / "background")
    assert [path.name for path in folder.complete()] == ["iter_2.pth", "iter_4.pth", "iter_6.pth"]
    ours, theirs = final_weights(tmp_path / "background"), final_weights(tmp_path / "plain")
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    # a checkpoint written while the training went on holds its own step, not a later one
    train_toy(tmp_path / "again", resume=str(tmp_path / "background" / "iter_4.pth"), **SETTINGS)
    assert all(torch.equal(final_weights(tmp_path / "again")[name], tensor) for name, tensor in theirs.items())


class TestDamage:
    @pytest.fixture
    def checkpoint(self, tmp_path: Path) -> Path:
        train_toy(tmp_path, max_iters=1, size=27)
        return tmp_path / "iter_1.pth"

    def test_flipped_bit(self, checkpoint: Path) -> None:
        assert damage_of(checkpoint) is None
        content = bytearray(checkpoint.read_bytes())
        weight = torch.load(checkpoint, weights_only=True)["state_dict"]["head.0.weight"]
        content[content.find(weight.numpy().tobytes()) + 5] ^= 1
        checkpoint.write_bytes(content)
        with pytest.raises(XTunerError, match=r"iter_1\.pth is damaged: iter_1\.pth: Bad CRC-32"):
            train_toy(checkpoint.parent, resume="auto", max_iters=2, size=27)

    @pytest.mark.parametrize("resume", ["auto", "path"])
    @pytest.mark.parametrize("kind", ["file", "folder"])
    def test_what_says_what_a_file_holds(self, checkpoint: Path, kind: str, resume: str) -> None:
        """Without it the file cannot even be looked into: torch's errors would say anything."""
        damaged = checkpoint
        if kind == "folder":
            content = checkpoint.read_bytes()
            checkpoint.unlink()
            checkpoint.mkdir()
            damaged = checkpoint / TRAINER_FILE
            damaged.write_bytes(content)
        content = bytearray(damaged.read_bytes())
        place = content.find(b"data.pkl") + 100
        content[place : place + 50] = bytes(byte ^ 0xFF for byte in content[place : place + 50])
        damaged.write_bytes(content)
        folder = CheckpointFolder(checkpoint.parent)
        with pytest.raises(XTunerError, match=r"iter_1\.pth is damaged: .*Bad CRC-32.*data\.pkl"):
            folder.find("auto" if resume == "auto" else str(checkpoint))

    def test_missing_and_damaged_shards(self, tmp_path: Path) -> None:
        names = ["mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"]
        for name in names:
            torch.save({"a": torch.arange(100.0)}, tmp_path / name)
        trainer = {"files": list_files(tmp_path)}
        assert check_bytes(tmp_path, trainer, rank=0) is None
        content = bytearray((tmp_path / names[1]).read_bytes())
        content[content.find(torch.arange(100.0).numpy().tobytes()) + 9] ^= 1
        (tmp_path / names[1]).write_bytes(content)
        assert "Bad CRC-32" in str(check_bytes(tmp_path, trainer, rank=0))
        assert check_bytes(tmp_path, trainer, rank=1) is None  # another rank's file
        (tmp_path / names[0]).unlink()
        assert f"{names[0]}: " in str(check_bytes(tmp_path, trainer, rank=0))

    def test_weights_only(self, tmp_path: Path) -> None:
        path = tmp_path / "iter_1.pth"
        torch.save({"state_dict": {}}, path)
        with pytest.raises(XTunerError, match=r"lacks optimizer \('optimizer'\), step.*pretrained_pth=.*iter_1.pth"):
            CheckpointFolder(tmp_path).find(str(path))

    def test_folder_without_optimizer(self, tmp_path: Path) -> None:
        (tmp_path / "mp_rank_00_model_states.pt").touch()
        (tmp_path / TRAINER_FILE).touch()
        with pytest.raises(XTunerError, match=r"It lacks the optimizer \(\*optim_states.pt\)\. Start a new run"):
            check_resumable_form(tmp_path)


class TestBest:
    def test_best_stays_although_newer_ones_come(self, tmp_path: Path) -> None:
        folder = CheckpointFolder(tmp_path, keep=1)
        for step, value in ((1, 0.3), (2, 0.5), (3, 0.4), (4, None)):
            torch.save({}, folder.path(step))
            folder.commit(folder.path(step))
            if value is not None:
                folder.rate(folder.path(step), Score("val/mme", value))
        assert [path.name for path in folder.complete()] == ["iter_2.pth", "iter_4.pth"]
        assert folder.best() == (folder.path(2), Score("val/mme", 0.5))
        assert json.loads((tmp_path / "best_checkpoint.json").read_text())["checkpoint"] == "iter_2.pth"

    def test_steps_that_were_not_saved_do_not_count(self, tmp_path: Path) -> None:
        folder = CheckpointFolder(tmp_path, keep=1)
        folder.rate(folder.path(3), Score("val/mme", 0.9))
        assert folder.best() is None


def test_a_disk_too_full_for_the_log_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, framework_log: list[logging.LogRecord]
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("mmengine.visualization.Visualizer.add_scalars", full)
    train_toy(tmp_path, **SETTINGS)
    assert CheckpointFolder(tmp_path).latest() == tmp_path / "iter_6.pth"
    said = [record.getMessage() for record in framework_log if record.levelno == logging.ERROR]
    assert len(said) == 6 and "scalars of step 1 could not be written: [Errno 28] No space left" in said[0]


def test_curves_that_cannot_be_written_to_their_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, framework_log: list[logging.LogRecord]
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("mmengine.visualization.Visualizer.close", full)
    train_toy(tmp_path, **SETTINGS)
    said = [record.getMessage() for record in framework_log if record.levelno == logging.WARNING]
    assert any("points of the curves could not be written: [Errno 28] No space left" in line for line in said)


def test_a_log_that_cannot_be_written_is_reported_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    emit = logging.FileHandler.emit

    def full(self: logging.FileHandler, record: logging.LogRecord) -> None:
        if not self.baseFilename.startswith(str(tmp_path)):
            emit(self, record)  # pytest's own
            return
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            self.handleError(record)

    monkeypatch.setattr(logging.FileHandler, "emit", full)
    train_toy(tmp_path, **SETTINGS)
    said = capfd.readouterr().err
    assert said.count("cannot be written: [Errno 28] No space left") == 1 and "Traceback" not in said
