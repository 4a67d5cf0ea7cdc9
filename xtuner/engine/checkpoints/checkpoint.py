"""The checkpoints of a run's folder: names, which are complete, last or best, which go; random states."""

from __future__ import annotations

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
from xtuner.errors import XTunerError
from xtuner.log import get_logger

_POINTER = "last_checkpoint"
_BEST = "best_checkpoint.json"
_NAME = re.compile(r"iter_(\d+)\.pth")


@dataclass(frozen=True)
class Score:
    """What evaluation during training measured on a checkpoint: the metric's name and its value, more is better."""

    metric: str
    value: float


class CheckpointFolder:
    """The checkpoints ``iter_<optimizer steps done>.pth`` of one run: files, or folders under DeepSpeed.

    ``last_checkpoint`` holds the path of the newest; ``best_checkpoint.json`` names the one of the best score, which
    never is removed as surplus.

    Args:
        work_dir: the run's folder.
        keep: how many stay, the newest; None for all.
    """

    def __init__(self, work_dir: str | Path, keep: int | None = None) -> None:
        self.work_dir = Path(work_dir)
        self.keep = keep

    def path(self, step: int) -> Path:
        """Returns the place of the checkpoint after `step` optimizer steps."""
        return self.work_dir / f"iter_{step}.pth"

    def complete(self) -> list[Path]:
        """Returns the complete checkpoints, oldest first."""
        found = [p for p in self.work_dir.glob("iter_*.pth") if _NAME.fullmatch(p.name) and is_complete(p)]
        return sorted(found, key=step_of)

    def latest(self) -> Path | None:
        """Returns the checkpoint ``last_checkpoint`` names; if that is not complete, that of most steps."""
        pointer = self.work_dir / _POINTER
        if pointer.is_file():
            # by name: the folder may have moved since
            named = self.work_dir / Path(pointer.read_text().strip()).name
            if is_complete(named):
                return named
        found = self.complete()
        return found[-1] if found else None

    def best(self) -> tuple[Path, Score] | None:
        """Returns the checkpoint of the best score, if one was measured and is still there."""
        file = self.work_dir / _BEST
        if not file.is_file():
            return None
        content = json.loads(file.read_text(encoding="utf-8"))
        path = self.work_dir / content["checkpoint"]
        return (path, Score(content["metric"], content["value"])) if is_complete(path) else None

    def rate(self, path: Path, score: Score) -> None:
        """Points ``best_checkpoint.json`` at `path` if its `score` is the best of its metric so far.

        Nothing happens where `path` is no complete checkpoint: its steps were evaluated but not saved.
        """
        best = self.best()
        if is_complete(path) and (best is None or best[1].metric != score.metric or score.value > best[1].value):
            self._write(_BEST, json.dumps({"checkpoint": path.name, **asdict(score)}))
            get_logger().info("Best so far: %s %.4f in %s", score.metric, score.value, path)

    def commit(self, path: Path) -> None:
        """Points ``last_checkpoint`` at the complete `path`; then removes surplus checkpoints and left-overs."""
        self._write(_POINTER, str(path.resolve()))
        best = self.best()
        for leftover in self.work_dir.glob(".iter_*.tmp"):
            remove_checkpoint(leftover)
        if self.keep is not None:
            others = [p for p in self.complete() if p != path]
            # a run started anew in an old folder must not lose its own checkpoints to older ones with more
            # steps
            others.sort(key=lambda p: p.stat().st_mtime)
            for old in others[: max(0, len(others) + 1 - self.keep)]:
                if best is None or old != best[0]:
                    remove_checkpoint(old)

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
            raise XTunerError(f"--resume {resume}: no such checkpoint. Pass an iter_*.pth, or 'auto' for the newest.")
        check_resumable_form(path)
        return path


def step_of(path: Path) -> int:
    """Returns the optimizer steps in a checkpoint's name."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else -1


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
