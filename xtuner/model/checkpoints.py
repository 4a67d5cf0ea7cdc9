"""Reading weights in every form they come in, loading them with nothing hidden, writing them so that no half
file stays.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from xtuner.errors import XTunerError
from xtuner.log import get_logger

_WRAPPERS = ("state_dict", "module", "model")
_HF_NAMES = ("model.safetensors", "pytorch_model.bin")


def read_state_dict(path: str | Path, prefix: str = "") -> dict[str, torch.Tensor]:
    """Reads the weights below `path` onto the CPU; no code that a pickle may carry is run.

    Args:
        path: a .safetensors, .pth, .pt or .bin file, a checkpoint of a run (its weights are taken), a folder
            as transformers saves it (one file or shards), or a DeepSpeed checkpoint folder (ZeRO 1–3: float32
            weights are put together from the ranks' pieces).
        prefix: only names that begin so are returned, without it.

    Raises:
        XTunerError: nothing there, an unknown or damaged format, or a pickle that holds more than tensors.
    """
    path = Path(path)
    if not path.exists():
        raise XTunerError(
            f"the checkpoint '{path}' does not exist: check the path (relative ones start at {Path.cwd()})."
        )
    state = _read_folder(path, prefix) if path.is_dir() else _read_file(path, prefix)
    if all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _read_file(path: Path, prefix: str = "") -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                return {key: file.get_tensor(key) for key in file.keys() if key.startswith(prefix)}
        except SafetensorError as error:
            raise XTunerError(f"'{path}' is damaged: {error}. Download or save it again.") from error
    content = load_pickle(path)
    for name in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping):
        raise XTunerError(f"'{path}' holds a {type(content).__name__}: expected a dictionary of tensors.")
    return {key: value for key, value in content.items() if isinstance(value, torch.Tensor)}


def load_pickle(path: str | Path) -> Any:
    """``torch.load`` onto the CPU that refuses everything but tensors and plain values.

    Raises:
        XTunerError: the file would run code when loaded, or is damaged.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise XTunerError(
            f"'{path}' is refused: it holds more than tensors ({_unsafe_globals(path)}), and loading such a "
            f"file runs "
            "whatever code it carries. If you trust where it comes from, convert it once on your own "
            "responsibility: "
            "torch.save({k: v for k, v in torch.load(FILE, weights_only=False).items() if "
            "torch.is_tensor(v)}, NEW_FILE)"
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise XTunerError(
            f"'{path}' cannot be read: {str(error).splitlines()[0]} It may be cut off."
        ) from error


def _unsafe_globals(path: str | Path) -> str:
    try:
        names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    except (
        RuntimeError,
        ValueError,
        pickle.UnpicklingError,
    ):  # not a zip archive: an old or hand-made pickle
        return "a plain pickle"
    return ", ".join(names) or "objects"


def _read_folder(path: Path, prefix: str) -> dict[str, torch.Tensor]:
    for name in _HF_NAMES:
        index = path / f"{name}.index.json"
        if index.is_file():
            return _read_shards(path, index, prefix)
        if (path / name).is_file():
            return _read_file(path / name, prefix)
    if (path / "latest").is_file():
        return _read_zero(path, (path / "latest").read_text(encoding="utf-8").strip())
    if any(path.glob("*model_states.pt")):
        return _read_zero(path.parent, path.name)
    raise XTunerError(
        f"the folder '{path}' is no checkpoint: expected {', '.join(_HF_NAMES)} (or their .index.json), or "
        f"DeepSpeed's "
        f"*_model_states.pt. Found: {', '.join(sorted(p.name for p in path.iterdir())[:8]) or 'nothing'}."
    )


def _read_shards(folder: Path, index: Path, prefix: str) -> dict[str, torch.Tensor]:
    where: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    files = sorted({file for key, file in where.items() if key.startswith(prefix)})
    absent = [file for file in files if not (folder / file).is_file()]
    if absent:
        raise XTunerError(
            f"'{folder}' lacks {len(absent)} of its {len(files)} files, {absent[0]} for one: fetch them "
            f"again."
        )
    state: dict[str, torch.Tensor] = {}
    for file in files:
        state.update(_read_file(folder / file, prefix))
    return state


def _read_zero(folder: Path, tag: str) -> dict[str, torch.Tensor]:
    for file in sorted((folder / tag).glob("*_states.pt")):
        _check_deepspeed_pickle(file)
    # imported late: DeepSpeed takes seconds and is only needed for its own format
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    if not any((folder / tag).glob("*optim_states.pt")):
        return _read_zero_weights_only(folder / tag)
    # lazy: the ranks' files stay memory-mapped, each weight is put together once
    state = get_fp32_state_dict_from_zero_checkpoint(str(folder), tag=tag, lazy_mode=True)
    return {key: value.contiguous() for key, value in state.items()}


def _read_zero_weights_only(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted(folder.glob("*model_states.pt"))
    if len(files) != 1:
        raise XTunerError(
            f"'{folder}' has {len(files)} *_model_states.pt and no *_optim_states.pt: its weights are split "
            f"over ranks and "
            "cannot be put together. Copy the whole checkpoint."
        )
    with _deepspeed_globals():
        return _read_file(files[0])


def _check_deepspeed_pickle(file: Path) -> None:
    """DeepSpeed loads its own files without protection, so what they name is looked at first, without
    loading.
    """
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(str(file))
    except (RuntimeError, ValueError, pickle.UnpicklingError) as error:
        raise XTunerError(
            f"'{file}' cannot be read: {str(error).splitlines()[0]} It may be cut off."
        ) from error
    foreign = sorted(name for name in names if not _is_deepspeed_class(name))
    if foreign:
        raise XTunerError(
            f"'{file}' is refused: besides tensors and DeepSpeed's own classes it names {', "
            f"'.join(foreign)}, and loading it "
            "could run code. Take the checkpoint from where it was made."
        )


def _is_deepspeed_class(name: str) -> bool:
    harmless = ("argparse.Namespace", "collections.OrderedDict", "torch.")
    own = (
        "deepspeed.runtime.zero.",
        "deepspeed.runtime.fp16.loss_scaler.",
        "deepspeed.utils.tensor_fragment.",
    )
    return name.startswith((*own, *harmless)) and not name.startswith(
        ("torch.load", "torch.hub", "torch.ops")
    )


@contextlib.contextmanager
def _deepspeed_globals() -> Iterator[None]:
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum

    with torch.serialization.safe_globals([LossScaler, DynamicLossScaler, ZeroStageEnum]):
        yield


@dataclass(frozen=True)
class LoadReport:
    """What loading did.

    Attributes:
        missing: names of the required parts that the checkpoint lacks.
        unexpected: names of the checkpoint that the model lacks.
        loaded_parts: parts that were loaded completely, by name.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    loaded_parts: tuple[str, ...]

    def log(self, source: str) -> None:
        """Writes one line for what was loaded, and a warning for every kind of left-over."""
        logger = get_logger()
        logger.info("loaded %s from %s", ", ".join(self.loaded_parts) or "nothing", source)
        for what, names in (("missing from it", self.missing), ("unknown here, ignored", self.unexpected)):
            if names:
                logger.warning("%s: %d weights %s, e.g. %s", source, len(names), what, ", ".join(names[:3]))


def load_parts(
    parts: Mapping[str, nn.Module],
    state: Mapping[str, torch.Tensor],
    required: Collection[str],
    source: str = "checkpoint",
) -> LoadReport:
    """Loads `state` into a model's parts; parts that the checkpoint has none of stay as they are, unless
    required.

    Args:
        parts: the model's parts by name; weights are named ``<part>.<name within it>``.
        state: weights by full name.
        required: parts that must be there completely.
        source: where `state` is from, for messages.

    Raises:
        XTunerError: a required part is absent or incomplete, or a weight has another shape; the message names
            all of them.
    """
    own = {
        f"{part}.{name}": value for part, module in parts.items() for name, value in _tensors(module).items()
    }
    found = {name: [key for key in own if key.startswith(name + ".") and key in state] for name in parts}
    loadable = {id(own[key]) for keys in found.values() for key in keys}
    # tied weights are saved once, under one of their names
    missing = {
        name: [
            key
            for key in own
            if key.startswith(name + ".") and key not in state and id(own[key]) not in loadable
        ]
        for name in parts
        if name in required or found[name]
    }
    problems = [_missing_message(name, keys, not found[name]) for name, keys in missing.items() if keys]
    for keys in found.values():
        for key in keys:
            shape = tuple(getattr(own[key], "ds_shape", own[key].shape))
            if tuple(state[key].shape) != shape:
                problems.append(f"{key} is {tuple(state[key].shape)} there and {shape} in this model")
    if problems:
        raise XTunerError(
            f"{source} does not fit this model:\n" + "\n".join(f"  - {line}" for line in problems[:12]) + "\n"
            f"It holds {', '.join(sorted({key.split('.')[0] for key in state})) or 'nothing'}. Take the "
            f"checkpoint of this "
            "model's kind and size, or change the config's llm_name_or_path and encoders to those it was "
            "trained with."
        )
    for keys in found.values():
        for key in keys:
            _copy(own[key], state[key])
    return LoadReport(
        missing=tuple(key for keys in missing.values() for key in keys),
        unexpected=tuple(sorted(key for key in state if key not in own)),
        loaded_parts=tuple(name for name in parts if found[name]),
    )


def _missing_message(part: str, keys: list[str], absent: bool) -> str:
    if absent:
        return f"the part '{part}' is absent ({len(keys)} weights)"
    return (
        f"the part '{part}' is incomplete: {len(keys)} weights are missing, {', '.join(keys[:3])} for example"
    )


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return nn.Module.state_dict(module, keep_vars=True)


def _copy(target: torch.Tensor, value: torch.Tensor) -> None:
    if not hasattr(target, "ds_id"):
        with torch.no_grad():
            target.copy_(value)
        return
    # under ZeRO-3 each rank holds a piece: gather, write on rank 0, scatter
    from deepspeed.zero import GatheredParameters

    with GatheredParameters([target], modifier_rank=0), torch.no_grad():
        if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
            target.copy_(value)


def save_file_atomic(obj: Any, path: str | Path) -> None:
    """Saves to a temporary file beside `path`, then renames it: a cut-off run leaves the old file or the new
    one.

    Args:
        obj: tensors by name for a .safetensors path, else anything that ``torch.save`` takes.
        path: target; its folder is created.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if path.suffix == ".safetensors":
            save_file({key: value.detach().cpu().contiguous() for key, value in obj.items()}, temporary)
        else:
            torch.save(obj, temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
