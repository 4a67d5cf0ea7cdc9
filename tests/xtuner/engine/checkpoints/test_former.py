"""A folder with a former run in it: refused, or moved aside whole."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from xtuner.engine.checkpoints.former import check_work_dir, move_aside
from xtuner.errors import XTunerError


@pytest.fixture
def former(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    torch.save({}, folder / "iter_3.pth")
    (folder / "notes.txt").write_text("mine")
    return folder


def test_checkpoints_are_refused_without_a_word(former: Path) -> None:
    with pytest.raises(XTunerError, match=r"iter_3\.pth: --resume auto continues.*--start-anew.*another --work-dir"):
        check_work_dir(former, None, start_anew=False)
    check_work_dir(former, "auto", start_anew=False)
    check_work_dir(former, None, start_anew=True)


def test_a_folder_without_checkpoints_is_fine(former: Path) -> None:
    (former / "iter_3.pth").unlink()
    check_work_dir(former, None, start_anew=False)
    check_work_dir(former.parent / "new" / "deeper", None, start_anew=False)


def test_moved_aside_whole_each_time_to_the_next_number(former: Path) -> None:
    move_aside(former)
    assert (former.parent / "run.1" / "notes.txt").read_text() == "mine"
    assert (former.parent / "run.1" / "iter_3.pth").is_file()
    assert former.is_dir() and not any(former.iterdir())
    move_aside(former)  # nothing is in it
    assert not (former.parent / "run.2").exists()
    (former / "again").touch()
    move_aside(former)
    assert (former.parent / "run.2" / "again").exists()


def test_a_link_stays_and_its_target_moves(former: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(former)
    move_aside(link)
    assert link.is_symlink() and not any(link.iterdir())
    assert (tmp_path / "run.1" / "iter_3.pth").is_file()


def test_what_the_run_reads_is_not_moved_away(former: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(XTunerError, match=r"this run reads '.*iter_3\.pth' in it"):
        check_work_dir(former, None, start_anew=True, files=["data.json", str(former / "iter_3.pth")])
    monkeypatch.chdir(former)
    with pytest.raises(XTunerError, match="the command runs in it"):
        check_work_dir(Path(), None, start_anew=True)


def test_folders_that_cannot_be_written(former: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(XTunerError, match=r"notes\.txt' is not a folder"):
        check_work_dir(former / "notes.txt" / "run", None, start_anew=False)
    # root may write everywhere but on a read-only disk
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(XTunerError, match="cannot be written by you, or its disk is read-only"):
        check_work_dir(former.parent / "new", None, start_anew=False)
