"""Writing checkpoints so that no half one is ever taken, at once or while training goes on.

A checkpoint comes into being in two acts. **Writing**: each rank puts its files under a temporary name and waits until
they are on disk. **Committing**, when every rank has written: rank 0 adds what makes the checkpoint complete, renames
it and moves the pointer. A kill at any moment leaves the former checkpoint as the last one; a full disk does too.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from xtuner.engine.checkpoints.checkpoint import CheckpointFolder, flush, remove_checkpoint
from xtuner.engine.processes.environment import Collective
from xtuner.errors import XTunerError, reason_of
from xtuner.log import get_logger
from xtuner.model.files.writing import free_space


class SavingBackend(Protocol):
    """What saving asks of a backend."""

    def stage(self, temporary: Path, trainer: dict[str, Any], copy: bool) -> Callable[[], None]:
        """Collects this rank's part of a checkpoint; returns what writes it and may run in a thread.

        Args:
            temporary: the checkpoint's name until it is complete.
            trainer: the run's facts.
            copy: the tensors will change before they are written, so copy them to the host first.
        """
        ...

    def seal(self, temporary: Path, trainer: dict[str, Any]) -> None:
        """On rank 0, when every rank has written: adds what makes the checkpoint complete."""
        ...


@dataclass
class _Pending:
    step: int
    temporary: Path
    trainer: dict[str, Any]
    writing: Future[str | None]
    started: float


class CheckpointSaver:
    """Saves a run's checkpoints.

    Args:
        backend: plain or DeepSpeed.
        folder: of the run.
        collective: exchange between ranks.
        background: write in a thread, from a copy in host memory, while the training goes on.
    """

    def __init__(
        self, backend: SavingBackend, folder: CheckpointFolder, collective: Collective, background: bool = False
    ) -> None:
        self.backend = backend
        self.folder = folder
        self.collective = collective
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint") if background else None
        self._pending: _Pending | None = None
        self._failed: tuple[int, list[str]] | None = None

    @property
    def has_written(self) -> bool:
        """True when this rank's part of a pending checkpoint is on disk, or could not be written."""
        return self._pending is not None and self._pending.writing.done()

    def save(self, step: int, trainer: dict[str, Any]) -> None:
        """Saves the state after `step` optimizer steps; in the background it only copies. Called on all ranks.

        A checkpoint that cannot be written is reported and left out; the former one stays.
        """
        self.finish()
        path = self.folder.path(step)
        temporary = path.with_name(f".{path.name}.tmp")
        if self.collective.rank == 0:
            remove_checkpoint(temporary)
        self.collective.barrier()
        started = time.perf_counter()
        write = self.backend.stage(temporary, trainer, copy=self._thread is not None)
        if self._thread is None:
            writing: Future[str | None] = Future()
            writing.set_result(_attempt(write))
        else:
            writing = self._thread.submit(_attempt, write)
        self._pending = _Pending(step, temporary, trainer, writing, started)
        if self._thread is None:
            self.finish()

    def finish(self) -> None:
        """Waits for a pending checkpoint and commits it. Called on all ranks at the same point."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        problems = self.collective.gather(pending.writing.result())
        path = self.folder.path(pending.step)
        if self.collective.rank == 0 and not any(problems):
            problems = [_attempt(lambda: self._commit(pending, path))]
        # the others go on when rank 0 is through
        problems = [problem for problem in self.collective.gather(problems[0]) + problems if problem]
        if problems:
            # torch's writer does not say why
            free = free_space(self.folder.work_dir)
            self._report(pending, [f"{problem} ({free})" for problem in problems])
            return
        self._failed = None
        seconds = time.perf_counter() - pending.started
        get_logger().info("Saved %s in %.1f s%s", path, seconds, " beside the training" if self._thread else "")

    def close(self) -> None:
        """Finishes what is pending.

        Raises:
            XTunerError: the last checkpoint could not be written, so that steps would be lost.
        """
        self.finish()
        if self._thread is not None:
            self._thread.shutdown()
        if self._failed is not None:
            step, problems = self._failed
            raise XTunerError(
                f"the checkpoint after step {step} could not be written: {problems[0]}. The previous one is "
                f"{self.folder.latest() or 'none'}; free some disk space, then continue with --resume auto."
            )

    def _commit(self, pending: _Pending, path: Path) -> None:
        self.backend.seal(pending.temporary, pending.trainer)
        self.folder.make_room(path)
        # nothing can be renamed onto a folder, nor a folder onto a file
        if path.is_dir() or pending.temporary.is_dir():
            remove_checkpoint(path)
        pending.temporary.replace(path)
        flush(path.parent)
        self.folder.commit(path, pending.trainer.get("finite", True))

    def _report(self, pending: _Pending, problems: list[str]) -> None:
        self._failed = (pending.step, problems)
        if self.collective.rank == 0:
            remove_checkpoint(pending.temporary)
        get_logger().error(
            "Could not save after step %d: %s. Training continues; the last complete checkpoint is %s. Free some "
            "disk space.",
            pending.step,
            problems[0],
            self.folder.latest() or "none",
        )


def _attempt(write: Callable[[], None]) -> str | None:
    """Runs `write`; returns what went wrong with the disk, if anything."""
    try:
        write()
    except (OSError, RuntimeError) as error:
        # torch's zip writer turns a full disk into a RuntimeError
        return reason_of(error)
    return None


def write_file(content: Any, path: Path) -> None:
    """Saves by ``torch.save`` and waits until it is on disk."""
    torch.save(content, path)
    flush(path)


def to_host(value: Any) -> Any:
    """Returns a copy of nested dicts, lists and tuples whose tensors are copies in host memory."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return type(value)((key, to_host(item)) for key, item in value.items())
    if type(value) in (list, tuple):
        return type(value)(to_host(item) for item in value)
    return value
