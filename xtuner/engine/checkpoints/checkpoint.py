"""The checkpoints of a run's folder: names, which are complete, last or best, which go; random states."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer, MessageHub

from xtuner.engine.checkpoints.integrity import check_resumable_form, is_complete
from xtuner.errors import XTunerError, reason_of
from xtuner.log import get_logger

_POINTER = "last_checkpoint"
_BEST = "best_checkpoint.json"
_LEDGER = "own_checkpoints.json"
_NAME = re.compile(r"iter_(\d+)\.pth")


@dataclass(frozen=True)
class Score:
    """What evaluation during training measured on a checkpoint: the metric's name and its value, more is better."""

    metric: str
    value: float


class CheckpointFolder:
    """The checkpoints ``iter_<optimizer steps done>.pth`` of one run: files, or folders under DeepSpeed.

    ``last_checkpoint`` holds the path of the newest; ``best_checkpoint.json`` names the one of the best score, which
    never is removed as surplus; ``own_checkpoints.json`` lists those that the run has written. Only these are removed
    as surplus or written over: what somebody else put there, or another run, stays.

    Args:
        work_dir: the run's folder.
        keep: how many stay, the newest; None for all.
    """

    def __init__(self, work_dir: str | Path, keep: int | None = None) -> None:
        self.work_dir = Path(work_dir)
        self.keep = keep
        self._own: set[str] = set()
        self._last_finite: str | None = None

    def adopt(self, resumed: Path, step: int) -> None:
        """Takes over what the run that is resumed has written: its checkpoints count as this run's.

        Resumed from its newest checkpoint these are all of them, what a kill left beyond the pointer included; from an
        older one those up to that: the later ones belong to steps that this run makes anew, and stay. From a checkpoint
        of another folder it takes over nothing here.

        Args:
            resumed: the checkpoint that the run goes on from.
            step: optimizer steps done in it.
        """
        if resumed.resolve().parent != self.work_dir.resolve():
            return
        newest = self.latest()
        goes_on = newest is not None and newest.resolve() == resumed.resolve()
        written = [name for name in self._read_ledger() if goes_on or step_of(self.work_dir / name) <= step]
        self._own = {*written, resumed.name}
        self._last_finite = resumed.name

    def make_room(self, path: Path) -> None:
        """Takes note that this run is about to put its checkpoint at `path`; what another run left there is renamed."""
        if path.name not in self._own and (path.exists() or path.is_symlink()):
            aside = set_aside(path)
            get_logger().warning("%s belongs to another run and is now named %s.", path, aside.name)
        self._take_note(path)

    def _take_note(self, path: Path) -> None:
        if path.name not in self._own:
            self._own.add(path.name)
            self._write(_LEDGER, json.dumps(sorted(self._own)))

    def _read_ledger(self) -> list[str]:
        file = self.work_dir / _LEDGER
        try:
            names = json.loads(file.read_text(encoding="utf-8"))
            return [name for name in names if isinstance(name, str) and _NAME.fullmatch(name)]
        except FileNotFoundError:
            return []  # of an older version
        except (ValueError, TypeError):
            get_logger().warning("%s is damaged, so the checkpoints already there stay, beyond save_total_limit.", file)
            return []

    def path(self, step: int) -> Path:
        """Returns the place of the checkpoint after `step` optimizer steps."""
        return self.work_dir / f"iter_{step}.pth"

    def complete(self) -> list[Path]:
        """Returns the complete checkpoints, oldest first."""
        found = [p for p in self.work_dir.glob("iter_*.pth") if _NAME.fullmatch(p.name) and is_complete(p)]
        return sorted(found, key=step_of)

    def latest(self) -> Path | None:
        """Returns the checkpoint ``last_checkpoint`` names; if that is not complete, that of most steps."""
        found = self.complete()
        pointer = self.work_dir / _POINTER
        try:
            # by name: the folder may have moved since
            named = self.work_dir / Path(pointer.read_text(encoding="utf-8").strip()).name
            if is_complete(named):
                return named
        except FileNotFoundError:
            pass  # a kill before the first pointer
        except (OSError, ValueError) as error:
            get_logger().warning(
                "%s does not hold the path of a checkpoint (%s): using %s, the one with the most steps.",
                *(pointer, reason_of(error), found[-1].name if found else "none"),
            )
        return found[-1] if found else None

    def best(self) -> tuple[Path, Score] | None:
        """Returns the checkpoint of the best score, if one was measured and is still there.

        Raises:
            XTunerError: ``best_checkpoint.json`` is cut off or damaged.
        """
        file = self.work_dir / _BEST
        if not file.is_file():
            return None
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            path = self.work_dir / Path(content["checkpoint"]).name
            score = Score(str(content["metric"]), float(content["value"]))
        except (ValueError, TypeError, KeyError) as error:
            raise XTunerError(
                f"{file} is cut off or damaged ({reason_of(error)}), so the best checkpoint is unknown: "
                "delete it, or put it back."
            ) from error
        return (path, score) if is_complete(path) else None

    def rate(self, path: Path, score: Score) -> None:
        """Points ``best_checkpoint.json`` at `path` if its `score` is the best of its metric so far.

        Nothing happens where `path` is no complete checkpoint: its steps were evaluated but not saved.
        """
        try:
            best = self.best()
        except XTunerError as error:
            get_logger().warning("%s The search for the best starts again here.", error)
            best = None
        if is_complete(path) and (best is None or best[1].metric != score.metric or score.value > best[1].value):
            self._write(_BEST, json.dumps({"checkpoint": path.name, **asdict(score)}))
            get_logger().info("Best so far: %s %.4f in %s", score.metric, score.value, path)

    def commit(self, path: Path, finite: bool = True) -> None:
        """Points ``last_checkpoint`` at the complete `path`; then removes this run's surplus and left-overs.

        Args:
            path: of the checkpoint.
            finite: its last step had a finite gradient. The newest of this kind stays beyond the limit: it may be the
                only good one of a run that goes wrong.
        """
        if finite:
            self._last_finite = path.name
        self._take_note(path)
        self._write(_POINTER, str(path.resolve()))
        for leftover in self.work_dir.glob(".iter_*.tmp"):
            remove_checkpoint(leftover)
        if self.keep is None:
            return
        try:
            best = self.best()
        except XTunerError as error:
            get_logger().warning("%s Until then no checkpoint is removed as surplus.", error)
            return
        others = [p for p in self.complete() if p != path and p.name in self._own]
        # those of this run alone, by age: resumed from an older one, it may write fewer steps than are there
        others.sort(key=lambda p: p.stat().st_mtime)
        for old in others[: max(0, len(others) + 1 - self.keep)]:
            if old.name != self._last_finite and (best is None or old != best[0]):
                remove_checkpoint(old)
                self._own.discard(old.name)

    def _write(self, name: str, text: str) -> None:
        temporary = self.work_dir / f".{name}.tmp"
        temporary.write_text(text, encoding="utf-8")
        flush(temporary)
        temporary.replace(self.work_dir / name)
        flush(self.work_dir)

    def find(self, resume: str) -> Path | None:
        """Turns ``--resume``'s value into a checkpoint: ``auto`` is `latest`, None where there is none yet.

        Raises:
            XTunerError: the path given does not exist, or the checkpoint is cut off, damaged, or holds weights only.
        """
        path = self.latest() if resume == "auto" else Path(resume)
        if path is None:
            return None
        if not path.exists():
            raise XTunerError(f"--resume {resume}: no such checkpoint; pass an iter_*.pth, or 'auto' for the newest.")
        check_resumable_form(path)
        return path


def step_of(path: Path) -> int:
    """Returns the optimizer steps in a checkpoint's name."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else -1


def set_aside(path: Path) -> Path:
    """Renames `path` to the first of ``<name>.1``, ``<name>.2``, ... that is free; returns the new path."""
    aside = next(
        new for number in itertools.count(1) if not os.path.lexists(new := path.with_name(f"{path.name}.{number}"))
    )
    path.rename(aside)
    return aside


def flush(path: Path) -> None:
    """Waits until a file's or folder's contents are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_checkpoint(path: Path) -> None:
    """Removes a checkpoint of either kind, file or folder; nothing where there is none."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def capture_rng() -> dict[str, Any]:
    """Returns the states of Python's, NumPy's and torch's generators, in types that safe loading accepts."""
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_rng(state: dict[str, Any]) -> None:
    """Puts back what `capture_rng` returned; the CUDA state only where both machines have one."""
    random.setstate(state["python"])
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def capture_scalars() -> dict[str, list[list[float]]]:
    """Returns the scalars of mmengine's message hub, values and counts by name, as plain numbers."""
    scalars = MessageHub.get_current_instance().log_scalars
    return {
        name: [values.tolist(), counts.tolist()] for name, buffer in scalars.items() for values, counts in [buffer.data]
    }


def restore_scalars(scalars: dict[str, list[list[float]]]) -> None:
    """Puts back what `capture_scalars` returned."""
    hub = MessageHub.get_current_instance()
    for name, (values, counts) in scalars.items():
        hub.log_scalars[name] = HistoryBuffer(values, counts)
