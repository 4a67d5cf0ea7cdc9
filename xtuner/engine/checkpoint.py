"""The checkpoints of a run's folder: names, which are complete, which is last, which go; random states."""

from __future__ import annotations

import random
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from xtuner.errors import XTunerError
from xtuner.log import get_logger

TRAINER_FILE = "trainer.pt"
"""What we add to a DeepSpeed checkpoint's folder; written last, so its presence means complete."""

_POINTER = "last_checkpoint"
_NAME = re.compile(r"iter_(\d+)\.pth")


class CheckpointFolder:
    """The checkpoints ``iter_<optimizer steps done>.pth`` of one run: files, or folders under DeepSpeed.

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

    def commit(self, path: Path) -> None:
        """Points ``last_checkpoint`` at the complete `path`; removes surplus checkpoints and left-overs."""
        temporary = self.work_dir / f".{_POINTER}.tmp"
        temporary.write_text(str(path.resolve()))
        temporary.replace(self.work_dir / _POINTER)
        for leftover in self.work_dir.glob(".iter_*.tmp"):
            remove_checkpoint(leftover)
        if self.keep is not None:
            others = [p for p in self.complete() if p != path]
            # a run started anew in an old folder must not lose its own checkpoints to older ones with more
            # steps
            others.sort(key=lambda p: p.stat().st_mtime)
            for old in others[: max(0, len(others) + 1 - self.keep)]:
                remove_checkpoint(old)

    def find(self, resume: str) -> Path | None:
        """Turns ``--resume``'s value into a checkpoint: ``auto`` is `latest`, None where there is none yet.

        Raises:
            XTunerError: the path given does not exist or is not complete.
        """
        if resume == "auto":
            return self.latest()
        path = Path(resume)
        if not path.exists():
            raise XTunerError(f"--resume {resume}: no such checkpoint. Give an iter_*.pth, or 'auto' for the newest.")
        if not is_complete(path):
            raise XTunerError(f"--resume {resume}: the checkpoint is cut off or not one of a run. Take an older one.")
        return path


def step_of(path: Path) -> int:
    """Returns the optimizer steps in a checkpoint's name."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else -1


def is_complete(path: Path) -> bool:
    """True for a whole checkpoint: a folder with its trainer file, or a file whose archive's end is there."""
    if path.is_dir():
        return (path / TRAINER_FILE).is_file()
    return path.is_file() and zipfile.is_zipfile(path)


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


def check_resumable(found: dict[str, Any], expected: dict[str, Any], path: Path) -> None:
    """Compares a checkpoint's facts (``parameters``: shape by name, ``global_batch``) with the run that would
    go on.

    Raises:
        XTunerError: other trained parameters or another number of samples per step.
    """
    theirs, ours = found["parameters"], expected["parameters"]
    missing = sorted(set(ours) - set(theirs))
    surplus = sorted(set(theirs) - set(ours))
    shapes = [f"{n}: {theirs[n]}, here {ours[n]}" for n in sorted(set(ours) & set(theirs)) if theirs[n] != ours[n]]
    problems = [
        *([f"{len(missing)} trained here but not there, e.g. {missing[0]}"] if missing else []),
        *([f"{len(surplus)} trained there but not here, e.g. {surplus[0]}"] if surplus else []),
        *([f"{len(shapes)} of another shape, e.g. {shapes[0]}"] if shapes else []),
    ]
    if problems:
        raise XTunerError(
            f"{path} is of another model: {'; '.join(problems)}. Resume with the config it was made "
            "with, or start a new run that takes its weights by pretrained_pth."
        )
    if found["global_batch"] != expected["global_batch"]:
        raise XTunerError(
            f"{path} was made with {found['global_batch']} samples per optimizer step, this run has "
            f"{expected['global_batch']}: samples would be seen twice or never. Keep processes x batch_size "
            "x accumulative_counts."
        )
    if found["max_iters"] != expected["max_iters"]:
        get_logger().warning(
            "%s was on a schedule of %d steps, this run has %d: the rate follows the new one from here.",
            path,
            found["max_iters"],
            expected["max_iters"],
        )
