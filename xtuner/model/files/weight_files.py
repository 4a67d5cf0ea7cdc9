"""Reading weights in every form they come in, without running code that a file may carry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from xtuner.errors import XTunerError
from xtuner.json_values import read_json
from xtuner.model.files.pickles import check_pickles, damaged, load_pickle
from xtuner.model.files.zero_files import open_zero_files

LAST_CHECKPOINT = "last_checkpoint"
"""File of a run's folder that holds the path of its newest checkpoint."""
_WRAPPERS = ("state_dict", "module", "model")
_HF_NAMES = ("model.safetensors", "pytorch_model.bin")
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""torch's types by their names in safetensors files."""


class Weight(NamedTuple):
    """A tensor of a file that is not read yet.

    Attributes:
        shape: of the tensor.
        dtype: of the tensor.
        load: reads it onto the CPU.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    load: Callable[[], torch.Tensor]


def read_state_dict(path: str | Path, prefix: str = "") -> dict[str, torch.Tensor]:
    """Reads the weights below `path` onto the CPU; arguments and errors as of `open_weights`."""
    return {name: weight.load() for name, weight in open_weights(path, prefix).items()}


def open_weights(path: str | Path, prefix: str = "") -> dict[str, Weight]:
    """Finds the weights below `path` and reads none before it is asked for: memory for one at a time is enough.

    Args:
        path: a .safetensors, .pth, .pt or .bin file, a checkpoint of a run (its weights are taken) or the run's folder
            or ``last_checkpoint`` (its newest), a folder as
            transformers saves it (one file or shards), or a DeepSpeed checkpoint folder (ZeRO 1–3: float32
            weights are put together from the ranks' pieces).
        prefix: only names that begin so are returned, without it.

    Raises:
        XTunerError: nothing there, an unknown or damaged format, a pickle that holds more than tensors, or an exported
            folder whose weights are quantised.
    """
    path = pointed_at(path)
    check_exists(path)
    _check_whole(path)
    state = _open_folder(path, prefix) if path.is_dir() else _open_file(path)
    if state and all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def pointed_at(path: str | Path) -> Path:
    """Returns the newest checkpoint where `path` is a run's folder or its file ``last_checkpoint``."""
    path = Path(path)
    pointer = path / LAST_CHECKPOINT if path.is_dir() else path
    if pointer.name != LAST_CHECKPOINT or not pointer.is_file():
        return path
    # by name: the run's folder may have moved since
    return pointer.parent / Path(pointer.read_text(encoding="utf-8", errors="replace").strip()).name


def check_exists(path: str | Path) -> None:
    """Refuses a checkpoint that is not there: commands ask before they build anything.

    Raises:
        XTunerError: nothing at `path`.
    """
    path = pointed_at(path)
    if not path.exists():
        raise XTunerError(
            f"the checkpoint '{path}' does not exist: check the path (relative ones start at {Path.cwd()})."
        )


def _check_whole(path: Path) -> None:
    """Refuses an exported folder whose weights are packed: their names and numbers are not those of the model."""
    if not (path / "config.json").is_file():
        return
    config = read_json(path / "config.json", dict)
    if "part_dtypes" in config and config.get("quantization_config"):
        raise XTunerError(
            f"'{path}' holds quantised weights, which only chat, serve, test and vLLM read: pass the folder that it "
            "was made from."
        )


def _held(tensor: torch.Tensor) -> Weight:
    return Weight(tuple(tensor.shape), tensor.dtype, lambda: tensor)


def _open_file(path: Path) -> dict[str, Weight]:
    if path.suffix == ".safetensors":
        return _open_safetensors(path)
    content = load_pickle(path, mapped=True)
    for name in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping):
        raise XTunerError(f"'{path}' holds a {type(content).__name__}: expected a dictionary of tensors.")
    return {key: _held(value) for key, value in content.items() if isinstance(value, torch.Tensor)}


def _open_safetensors(path: Path) -> dict[str, Weight]:
    try:
        with safe_open(path, framework="pt") as file:
            described = {key: file.get_slice(key) for key in file.keys()}
            return {
                key: Weight(tuple(piece.get_shape()), _DTYPES[piece.get_dtype()], _reader(path, key))
                for key, piece in described.items()
            }
    except SafetensorError as error:
        raise damaged(path, error) from error
    except KeyError as error:
        raise XTunerError(f"'{path}' holds tensors of the type {error}, which is unknown here.") from error


def _reader(path: Path, key: str) -> Callable[[], torch.Tensor]:
    def read() -> torch.Tensor:
        try:
            with safe_open(path, framework="pt") as file:
                return file.get_tensor(key)
        except SafetensorError as error:
            raise damaged(path, error) from error

    return read


def _open_folder(path: Path, prefix: str) -> dict[str, Weight]:
    for name in _HF_NAMES:
        index = path / f"{name}.index.json"
        if index.is_file():
            return _open_shards(path, index, prefix)
        if (path / name).is_file():
            return _open_file(path / name)
    if (path / "latest").is_file():
        tag = (path / "latest").read_text(encoding="utf-8", errors="replace").strip()
        if "\0" in tag or not (path / tag).is_dir():
            raise XTunerError(f"'{path / 'latest'}' names no folder beside it, but {tag[:60]!r}: {_FETCH}")
        return _open_zero(path, tag)
    if any(path.glob("*model_states.pt")):
        return _open_zero(path.parent, path.name)
    found = ", ".join(sorted(file.name for file in path.iterdir())[:8]) or "nothing"
    raise XTunerError(
        f"the folder '{path}' is no checkpoint: expected {', '.join(_HF_NAMES)} (or their .index.json), or "
        f"DeepSpeed's *_model_states.pt; found {found}."
    )


_FETCH = "fetch the folder again."


def _open_shards(folder: Path, index: Path, prefix: str) -> dict[str, Weight]:
    where = read_json(index, dict, _FETCH).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(file, str) for file in where.values()):
        raise XTunerError(f"'{index}' has no 'weight_map' of a weight's name to its file: {_FETCH}")
    files = sorted({file for key, file in where.items() if key.startswith(prefix)})
    absent = [file for file in files if not (folder / file).is_file()]
    if absent:
        raise XTunerError(
            f"'{folder}' lacks {len(absent)} of its {len(files)} files, {absent[0]} for one: fetch them again."
        )
    state: dict[str, Weight] = {}
    for file in files:
        state.update(_open_file(folder / file))
    return state


def _open_zero(folder: Path, tag: str) -> dict[str, Weight]:
    files = sorted((folder / tag).glob("*_states.pt"))
    check_pickles(files)
    if not any(file.name.endswith("optim_states.pt") for file in files):
        raise XTunerError(
            f"'{folder / tag}' has no *_optim_states.pt, where DeepSpeed keeps the weights: copy the whole folder."
        )
    return {name: Weight(*found) for name, found in open_zero_files(folder / tag).items()}
