"""A folder that holds a run already: a new one does not start in it, or sets it aside; nothing of it is deleted."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from xtuner.engine.checkpoints.checkpoint import CheckpointFolder, set_aside
from xtuner.engine.processes.folder_lock import locked
from xtuner.errors import XTunerError
from xtuner.log import get_logger


def check_work_dir(work_dir: Path, resume: str | None, start_anew: bool, files: Iterable[str] = ()) -> None:
    """Checks that a run can start in `work_dir`, of which nothing needs to exist.

    Args:
        work_dir: the run's folder.
        resume: value of ``--resume``, if given.
        start_anew: ``--start-anew`` is given.
        files: that the run reads, as far as its config names them.

    Raises:
        XTunerError: the folder cannot be written, holds checkpoints that nobody asked to go on from, or would be set
            aside with a file in it that the run reads.
    """
    _check_writable(work_dir)
    if start_anew:
        _check_can_move(work_dir, files)
    elif resume is None and (found := CheckpointFolder(work_dir).complete()):
        raise XTunerError(
            f"{work_dir} holds checkpoints of an earlier run, the last one {found[-1].name}: --resume auto continues "
            f"it, --start-anew moves it aside to {work_dir.name}.1 (nothing is deleted), another --work-dir keeps both."
        )


@contextmanager
def claimed(work_dir: Path, start_anew: bool, environ: Mapping[str, str]) -> Iterator[None]:
    """Holds the lock of a run's folder; with `start_anew` the former run is moved aside first. For rank 0.

    Raises:
        XTunerError: another run is in the folder, or it cannot be written or renamed.
    """
    if start_anew:
        with locked(work_dir, environ):
            pass  # nobody else is in it
        move_aside(work_dir)
    with locked(work_dir, environ):
        yield


def move_aside(work_dir: Path) -> None:
    """Renames a folder with anything in it to ``<name>.1``, or the next free number.

    Raises:
        XTunerError: it cannot be renamed.
    """
    # a link stays, so that the new run is on the disk that the link points at
    place = work_dir.resolve()
    if not place.is_dir() or not any(place.iterdir()):
        return
    try:
        aside = set_aside(place)
    except OSError as error:
        raise XTunerError(
            f"--start-anew: '{place}' cannot be renamed ({error.strerror}): choose another --work-dir."
        ) from error
    get_logger().info("--start-anew: the earlier run is now in %s", aside)
    place.mkdir()


def _check_writable(work_dir: Path) -> None:
    there = next(path for path in (work_dir, *work_dir.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        raise XTunerError(f"--work-dir {work_dir}: '{there}' is not a folder: choose another one.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise XTunerError(
            f"--work-dir {work_dir}: '{there}' cannot be written by you, or its disk is read-only: choose another one."
        )


def _check_can_move(work_dir: Path, files: Iterable[str]) -> None:
    place = work_dir.resolve()
    inside = [name for name in files if Path(name).expanduser().resolve().is_relative_to(place)]
    if inside:
        raise XTunerError(
            f"--start-anew would move {work_dir} aside, but this run reads '{inside[0]}' in it: choose another "
            "--work-dir."
        )
    if Path.cwd().is_relative_to(place):
        raise XTunerError(
            f"--start-anew would move {work_dir} aside, but the command runs in it: start it in another folder."
        )
