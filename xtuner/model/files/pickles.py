"""The one door for pickles: whoever reads one, nothing in it runs.

Files of ``torch.save`` are pickles, and a pickle is a program. `load_pickle` is how this project reads one: tensors,
plain values, and the few value classes of DeepSpeed's checkpoints. Libraries that read by themselves do so under
`restricted_loading`, which holds their ``torch.load`` to the same, whatever they ask for.
"""

from __future__ import annotations

import importlib
import os
import pickle
import sys
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any

import torch

from xtuner.constants import RESTRICT_TORCH
from xtuner.errors import XTunerError, reason_of

_DEEPSPEED_NAMES = (
    "argparse.Namespace",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
)
"""Plain value classes that DeepSpeed's own checkpoints name; none of them does anything when it is made."""
_ENDINGS = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


def load_pickle(path: str | Path, mapped: bool = False) -> Any:
    """``torch.load`` onto the CPU that refuses everything but tensors, plain values and DeepSpeed's value classes.

    Args:
        path: the file.
        mapped: map tensors instead of reading them, where the file's format allows it. They lie at odd addresses then,
            where CPU kernels round differently: to be copied, not to be computed with.

    Raises:
        XTunerError: the file would run code when loaded, or is damaged.
    """
    try:
        with torch.serialization.safe_globals(_value_classes(path)):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped and _can_be_mapped(path))
    except pickle.UnpicklingError as error:
        raise _refused(path) from error
    # any bytes are some pickle: what is none of ours ends in whatever its first instruction stumbles over
    except Exception as error:
        raise damaged(path, error) from error


@contextmanager
def restricted_loading(files: Sequence[Path] = ()) -> Iterator[None]:
    """Holds every ``torch.load`` within to `load_pickle`'s rules, also where a library asks for more.

    Args:
        files: what the library is about to read, see `pickles_in`: looked at first, so that the file at fault is named.

    Raises:
        XTunerError: one of `files` names a foreign class, or within, the library met such a file.
    """
    check_pickles(files)
    former = os.environ.get(RESTRICT_TORCH)
    os.environ[RESTRICT_TORCH] = "1"
    try:
        with torch.serialization.safe_globals(_value_classes("")):
            yield
    except pickle.UnpicklingError as error:
        raise XTunerError(
            "a file is refused: it holds more than tensors, and loading it would run whatever code it carries "
            f"({reason_of(error)}): take it from where it was made."
        ) from error
    finally:
        if former is None:
            del os.environ[RESTRICT_TORCH]
        else:
            os.environ[RESTRICT_TORCH] = former


def pickles_in(place: Any) -> list[Path]:
    """Returns the pickles below a folder, or the file itself where it is one; none for a hub's name."""
    path = Path(place) if isinstance(place, (str, Path)) else Path("/nowhere")
    if path.is_file():
        return [path] if path.suffix in _ENDINGS else []
    return [file for file in sorted(path.rglob("*")) if file.suffix in _ENDINGS and file.is_file()]


def check_pickles(files: Sequence[Path]) -> None:
    """Looks into files that another will read.

    Raises:
        XTunerError: one names a foreign class, or is damaged.
    """
    for file in files:
        if foreign_names(file):
            raise _refused(file)


def foreign_names(path: str | Path) -> list[str]:
    """Returns the classes and functions that a file names besides tensors, plain values and DeepSpeed's, sorted.

    Raises:
        XTunerError: the file is damaged.
    """
    try:
        with torch.serialization.safe_globals(_value_classes(path)):
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    except pickle.UnpicklingError:
        # no archive of torch's: an old or hand-made pickle, about which nothing can be told
        return ["a plain pickle"]
    except Exception as error:
        raise damaged(path, error) from error


def damaged(path: str | Path, error: Exception) -> XTunerError:
    """Returns what to raise for a file that cannot be read."""
    text = "" if isinstance(error, LookupError) else str(error)
    reason = (text.splitlines() or ["it is not a file of weights"])[0].rstrip(".")
    return XTunerError(f"'{path}' cannot be read: {reason}; it may be cut off: fetch or save it again.")


def _refused(path: str | Path) -> XTunerError:
    try:
        held = ", ".join(foreign_names(path)) or "objects"
    except XTunerError:
        held = "a plain pickle"
    return XTunerError(
        f"'{path}' is refused: it holds more than tensors ({held}), and loading such a file runs "
        "whatever code it carries; if you trust where it comes from, convert it once on your own "
        "responsibility: torch.save({k: v for k, v in torch.load(FILE, weights_only=False).items() "
        "if torch.is_tensor(v)}, NEW_FILE)"
    )


def _can_be_mapped(path: str | Path) -> bool:
    # files from before torch 1.6 are no archives
    return zipfile.is_zipfile(path)


def _value_classes(path: str | Path) -> list[Any]:
    """DeepSpeed's value classes for a file that may be one of its checkpoints; importing DeepSpeed takes seconds."""
    if not str(path).endswith("_states.pt") and "deepspeed" not in sys.modules:
        return []
    # Python up to 3.11.3 writes a member of an enumeration as getattr(class, name)
    return [*_classes(_DEEPSPEED_NAMES), (_enum_member, "builtins.getattr")]


def _enum_member(kind: Any, name: Any) -> Enum:
    """What stands for ``getattr`` in pickles: looks up members of enumerations, and nothing else."""
    if not (isinstance(kind, type) and issubclass(kind, Enum)):
        raise pickle.UnpicklingError(f"getattr of {kind!r}: expected an enumeration")
    return kind[name]


def _classes(names: Sequence[str]) -> list[Any]:
    found = []
    for name in names:
        module, _, kind = name.rpartition(".")
        try:
            found.append(getattr(importlib.import_module(module), kind))
        except (ImportError, AttributeError):
            # another version of DeepSpeed: what it no longer has is in none of its files
            continue
    return found
