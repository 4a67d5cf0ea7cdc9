"""Is a checkpoint whole? What it lacks for resuming, and whether its bytes are still those that were written.

Every file that ``torch.save`` writes is a zip archive with a CRC-32 of each tensor's bytes, so no second list of
checksums is needed: a flipped bit, a cut-off file and a file of another run all show. A DeepSpeed checkpoint's trainer
file also names every shard with its size, so that a missing one shows too.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

from xtuner.errors import XTunerError
from xtuner.model.files.base import TRAINER_FILE
from xtuner.model.files.pickles import load_pickle

_NEEDED = {"state_dict": "trained weights", "optimizer": "optimizer", "trainer": "step, random states and order"}
_CHUNK = 1 << 24


def is_complete(path: Path) -> bool:
    """True for a whole checkpoint: a folder with its trainer file, which is written last, or a file whose archive's end
    is there.
    """
    if path.is_dir():
        return (path / TRAINER_FILE).is_file()
    return path.is_file() and zipfile.is_zipfile(path)


def is_universal(path: Path) -> bool:
    """True for a DeepSpeed checkpoint that `xtuner convert universal` made, which fits any number of processes."""
    return (path / "zero").is_dir()


def check_resumable_form(path: Path) -> None:
    """Looks at what a checkpoint holds, without reading its tensors.

    Raises:
        XTunerError: it is cut off or damaged, or holds no optimizer: the message says what is missing and how its
            weights can still be used.
    """
    head = path / TRAINER_FILE if path.is_dir() else path
    if damage := damage_of(head, structure_only=True) if zipfile.is_zipfile(head) else None:
        raise XTunerError(f"{path} is damaged: {damage}; resume an older checkpoint with --resume PATH.")
    if path.is_dir():
        missing = _missing_in_folder(path)
    elif not zipfile.is_zipfile(path):
        raise XTunerError(
            f"--resume {path}: the checkpoint is truncated or does not come from a run: use an older one."
        )
    else:
        missing = _missing_in_file(path)
    if missing:
        raise XTunerError(
            f"--resume {path}: the run cannot continue from it. It lacks {', '.join(missing)}. Start a new run from "
            f"its weights: drop --resume and add --cfg-options pretrained_pth={path}"
        )


def _missing_in_folder(path: Path) -> list[str]:
    # a folder of transformers, or one of DeepSpeed that was cut off or thinned out
    missing = []
    if not list(path.glob("*model_states.pt")):
        missing.append("weights as DeepSpeed saves them (*model_states.pt)")
    if not list(path.glob("*optim_states.pt")) and not is_universal(path):
        missing.append("the optimizer (*optim_states.pt)")
    if not (path / TRAINER_FILE).is_file():
        missing.append(f"step, random states and order ({TRAINER_FILE})")
    return missing


def _missing_in_file(path: Path) -> list[str]:
    content = load_pickle(path, mapped=True)
    held = content if isinstance(content, dict) else {}
    return [f"{meaning} ('{key}')" for key, meaning in _NEEDED.items() if key not in held]


def damage_of(path: Path, structure_only: bool = False) -> str | None:
    """Reads a file of ``torch.save`` and compares its bytes with the checksums in it; None if all is well.

    Args:
        path: of the file.
        structure_only: read the small part that says what the file holds, which is needed to look into it at all.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            for entry in [e for e in entries if not structure_only or e.filename.endswith("data.pkl")]:
                with archive.open(entry) as content:
                    while content.read(_CHUNK):
                        pass
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        return f"{path.name}: {error}"
    return None


def read_trainer(path: Path) -> dict[str, Any] | None:
    """Returns the facts that a run wrote into a checkpoint, without reading its tensors; None where it holds none."""
    content = load_pickle(path / TRAINER_FILE) if path.is_dir() else load_pickle(path, mapped=True)
    return content.get("trainer") if isinstance(content, dict) else None


def list_files(folder: Path) -> dict[str, int]:
    """Returns name and size of the files of a sharded checkpoint, for its trainer file."""
    return {file.name: file.stat().st_size for file in sorted(folder.iterdir()) if file.name != TRAINER_FILE}


def check_bytes(path: Path, trainer: dict[str, Any], rank: int) -> str | None:
    """Checks the files that `rank` will load: its own shards; rank 0 also the shared files and that none is missing.

    Args:
        path: the checkpoint.
        trainer: its facts, with ``files`` as `list_files` gave them where it is a folder.
        rank: of this process.

    Returns:
        What is damaged, or None.
    """
    if not path.is_dir():
        return damage_of(path) if rank == 0 else None
    wrong = []
    for name, size in trainer.get("files", {}).items():
        file = path / name
        if rank == 0 and (not file.is_file() or file.stat().st_size != size):
            found = file.stat().st_size if file.is_file() else "absent"
            wrong.append(f"{name}: {size} bytes were written, found {found}")
        elif file.is_file() and (f"rank_{rank}_" in name or (rank == 0 and "zero_pp_rank" not in name)):
            wrong += [problem] if (problem := damage_of(file)) else []
    return "; ".join(wrong) or None
