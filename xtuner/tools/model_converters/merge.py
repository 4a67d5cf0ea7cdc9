"""``xtuner convert merge BASE ADAPTER SAVE_PATH``: adapters (LoRA) added to the weights that they belong to."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xtuner.errors import XTunerError, reason_of
from xtuner.json_values import read_json

HELP = "a model folder plus the adapters that peft saved to one model folder"
_ADAPTER = "adapter_config.json"
_DEFAULT_PART = "llm"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``xtuner convert merge``."""
    parser.add_argument("base", help="an exported folder, or a language model's folder")
    parser.add_argument(
        "adapter",
        help="peft folder of the language model, or a folder that holds one peft folder per part (llm, "
        "low_res_encoder)",
    )
    parser.add_argument("save_path", help="new folder")
    parser.add_argument(
        "--max-shard-size", default="5GB", metavar="SIZE", help="largest size of one file (default: 5GB)"
    )


def run(args: argparse.Namespace) -> int:
    """Merges; returns the exit code."""
    from xtuner.tools.model_converters.split import copy_with_weights, parse_size

    size = parse_size(args.max_shard_size)
    base, adapters = Path(args.base), adapters_in(Path(args.adapter))
    if not (base / "config.json").is_file():
        what = "is itself an adapter" if (base / _ADAPTER).is_file() else "has no config.json"
        raise XTunerError(
            f"the base '{base}' {what}: pass the folder of the full model that the adapter was trained on."
        )
    model, exported = _load_base(base)
    for part, folder in adapters.items():
        if exported:
            _check_base(_part(model, part, base), folder, base)
            setattr(model, part, _merged(_part(model, part, base), folder))
        elif part == _DEFAULT_PART:
            _check_base(model, folder, base)
            model = _merged(model, folder)
        else:
            raise XTunerError(
                f"'{base}' is a language model, but the adapter '{folder}' is for {part}: pass an exported folder."
            )
    copy_with_weights(base, Path(args.save_path), _weights(model), size)
    return 0


def adapters_in(folder: Path) -> dict[str, Path]:
    """Returns the folder of each part's adapter.

    Raises:
        XTunerError: there is none, or one lacks its weights.
    """
    if (folder / _ADAPTER).is_file():
        found = {_DEFAULT_PART: folder}
    else:
        found = {file.parent.name: file.parent for file in sorted(folder.glob(f"*/{_ADAPTER}"))}
    if not found:
        raise XTunerError(f"'{folder}' is not an adapter: expected {_ADAPTER} in it, or in one subfolder per part.")
    for path in found.values():
        if not any((path / name).is_file() for name in ("adapter_model.safetensors", "adapter_model.bin")):
            raise XTunerError(f"'{path}' lacks adapter_model.safetensors: copy the whole folder.")
    return found


def _load_base(base: Path) -> tuple[Any, bool]:
    """Returns the model of a folder, and whether it is an exported one."""
    from transformers import AutoModelForCausalLM

    from xtuner.model.files.pickles import pickles_in, restricted_loading
    from xtuner.model.files.quiet import quiet_transformers
    from xtuner.tools.support.families import family_of, is_exported

    if is_exported(base):
        return family_of(base).load_model(base), True
    try:
        with restricted_loading(pickles_in(base)), quiet_transformers():
            return AutoModelForCausalLM.from_pretrained(base, dtype="auto"), False
    except (OSError, ValueError) as error:
        raise XTunerError(f"the base '{base}' cannot be read: {reason_of(error)}.") from error


def _part(model: Any, name: str, base: Path) -> Any:
    part = getattr(model, name, None)
    if part is None:
        raise XTunerError(
            f"'{base}' has no part '{name}', but the adapter is for it: pass the model that the adapter was trained on."
        )
    return part


def _check_base(part: Any, folder: Path, base: Path) -> None:
    """Compares a part with the weights that an adapter belongs to, where it says so.

    Raises:
        XTunerError: they are others.
    """
    from xtuner.log import get_logger
    from xtuner.model.files.frozen import base_weights, mark_weights, same_weights
    from xtuner.model.lora import BASE_FILE

    if not (folder / BASE_FILE).is_file():
        get_logger().warning("%s has no %s: whether it belongs to '%s' is not checked.", folder, BASE_FILE, base)
        return
    facts = read_json(folder / BASE_FILE, dict)
    theirs = facts.get("marks")
    if not isinstance(theirs, dict):
        get_logger().warning("%s does not say what it belongs to: that is not checked.", folder / BASE_FILE)
        return
    marks = mark_weights(base_weights(part))
    if marks is not None and same_weights(theirs, marks) is False:
        raise XTunerError(
            f"the adapter '{folder}' was trained on other weights than those of '{base}': on {facts.get('name')} "
            f"({theirs.get('numbers')} numbers, here {marks['numbers']}). Give that model, with all its parts."
        )


def _merged(part: Any, folder: Path) -> Any:
    from peft import PeftModel

    from xtuner.model.files.pickles import pickles_in, restricted_loading
    from xtuner.model.files.quiet import quiet_transformers

    try:
        with restricted_loading(pickles_in(folder)), quiet_transformers():
            return PeftModel.from_pretrained(part, str(folder)).merge_and_unload(safe_merge=True)
    except (ValueError, RuntimeError, KeyError) as error:
        values = read_json(folder / _ADAPTER, dict)
        raise XTunerError(
            f"the adapter '{folder}' (made for '{values.get('base_model_name_or_path')}', targets "
            f"{values.get('target_modules')}) does not fit the base: {reason_of(error)}."
        ) from error


def _weights(model: Any) -> Iterator[tuple[str, Any]]:
    """Yields each weight once: of tied ones the first."""
    seen: set[int] = set()
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen or not tensor.numel():
            seen.add(tensor.data_ptr())
            yield name, tensor
