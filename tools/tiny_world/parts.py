"""The parts of a tiny model: the shipped pre-trained ones, checked and copied, or untrained ones."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

PART_NAMES = ("llm", "clip", "convnext")
PARTS_VERSION = 1
"""Raise it when scenes, words or part sizes change such that shipped parts no longer fit."""
SHIPPED = Path(__file__).parent / "pretrained"
"""Pre-trained parts, one folder per name, weights in float16."""
_NOTE = "training.json"
_TRAINED_BY = {
    "llm": "pretrain_llm.py",
    "clip": "pretrain_towers.py clip",
    "convnext": "pretrain_towers.py convnext",
}


@contextmanager
def ship_part(name: str, out: Path, arguments: dict[str, Any]) -> Iterator[tuple[Path, dict[str, float]]]:
    """A folder to train a part in; once trained it replaces ``out``, weights in half precision, with a note.

    Args:
        name: One of PART_NAMES.
        out: Where the part goes.
        arguments: Command-line arguments of the script, for the note ``training.json``.

    Yields:
        The folder to write the part to, and a dictionary to put its figures in.
    """
    partial = out.with_name(out.name + ".part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    figures: dict[str, float] = {}
    yield partial, figures
    _convert_weights(partial, np.float16)
    kept = {key: value for key, value in arguments.items() if key != "out"}
    note = {
        "version": PARTS_VERSION,
        "command": f"python tools/tiny_world/{_TRAINED_BY[name]}",
        "arguments": kept,
        "figures": figures,
        "sha256": {path.name: file_digest(path) for path in sorted(partial.glob("*.safetensors"))},
    }
    (partial / _NOTE).write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)


def file_digest(path: Path) -> str:
    """Returns the sha256 of a file in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check_shipped() -> None:
    """Checks that all pre-trained parts are there, whole, and made for this version of the world.

    Raises:
        SystemExit: naming every part that is not, and the command that makes it.
    """
    problems = []
    for name in PART_NAMES:
        fault = _fault(SHIPPED / name)
        if fault:
            problems.append(f"{SHIPPED / name}: {fault}; make it: python tools/tiny_world/{_TRAINED_BY[name]}")
    if problems:
        raise SystemExit("\n".join([*problems, "Or take untrained parts: --parts random."]))


def _fault(folder: Path) -> str:
    """Returns what is wrong with a shipped part, '' if nothing."""
    note_file = folder / _NOTE
    if not note_file.is_file():
        return "the pre-trained part is missing"
    note = json.loads(note_file.read_text(encoding="utf-8"))
    if note["version"] != PARTS_VERSION:
        return f"made for version {note['version']} of the world's parts, this is version {PARTS_VERSION}"
    for weights, digest in note["sha256"].items():
        if not (folder / weights).is_file():
            return f"{weights} is missing"
        if file_digest(folder / weights) != digest:
            return f"{weights} is not the file that its {_NOTE} describes"
    return ""


def _convert_weights(folder: Path, dtype: type[np.floating[Any]]) -> None:
    for file in folder.glob("*.safetensors"):
        state = load_file(file)
        floats = {name: value.astype(dtype) for name, value in state.items() if value.dtype.kind == "f"}
        save_file(state | floats, file, metadata={"format": "pt"})


def make_part(name: str, folder: Path, seed: int | None) -> None:
    """Makes one part in float32: the shipped pre-trained one, or one of random weights.

    Args:
        name: One of PART_NAMES.
        folder: Where the part goes; what stands there is replaced.
        seed: Seed of random weights; None takes the shipped part, which `check_shipped` has found whole.
    """
    shutil.rmtree(folder, ignore_errors=True)
    if seed is None:
        shutil.copytree(SHIPPED / name, folder)
        _convert_weights(folder, np.float32)
        return
    # seconds to import, and the shipped parts need none of it
    import torch

    from tools.tiny_world.untrained import MAKERS

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + PART_NAMES.index(name))
        MAKERS[name](folder)
