"""``xtuner convert pth_to_hf CONFIG CHECKPOINT SAVE_PATH``: one self-contained folder with all parts of a model."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xtuner.errors import XTunerError
from xtuner.json_values import read_json
from xtuner.tools.support.arguments import add_base, add_cfg_options

HELP = "a checkpoint (file or DeepSpeed folder) to one folder that holds the whole model"

_ADAPTERS = ("llm_lora", "visual_encoder_lora")
"""Settings of the model under which its checkpoints hold adapters."""
_TRAINING_FACTS = (
    "llm_name_or_path",
    "visual_encoder_name_or_path",
    "visual_encoder_aux_path",
    "data_path",
    "max_length",
    "batch_size",
    "accumulative_counts",
    "max_epochs",
    "max_iters",
    "lr",
    "warmup_ratio",
    "weight_decay",
    "precision",
    "seed",
)
_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``xtuner convert pth_to_hf``."""
    parser.add_argument("config", help="config that the checkpoint was trained with")
    parser.add_argument("checkpoint", help=".pth file, DeepSpeed checkpoint folder, or published weights")
    parser.add_argument("save_path", help="folder to write; it replaces an earlier export")
    parser.add_argument(
        "--dtype",
        choices=("auto", *_DTYPES),
        default="auto",
        help="number format of the weights (default: auto, which keeps the format of each part's own files)",
    )
    parser.add_argument(
        "--layout",
        choices=("folder", "original"),
        default="folder",
        help="folder (default): the whole model, for transformers, chat and serve; original: only the trained parts, "
        "under the names of the published checkpoints, to SAVE_PATH (.pth, .bin, .safetensors, or a folder of shards)",
    )
    parser.add_argument(
        "--push-to-hub",
        metavar="NAME",
        help="also upload the folder to this repository of the Hugging Face Hub (NAME or OWNER/NAME), made if need be; "
        "name, token and permission are checked before the export",
    )
    parser.add_argument("--private", action="store_true", help="with --push-to-hub: a new repository is private")
    add_base(parser)
    add_cfg_options(parser)


def run(args: argparse.Namespace) -> int:
    """Converts, and pushes the folder where it is asked to; returns the exit code."""
    from xtuner.config import load_config, parse_overrides
    from xtuner.log import get_logger
    from xtuner.model.files.weight_files import check_exists
    from xtuner.tools.support.hub import prepare_repository, push_folder

    name = args.push_to_hub
    if args.private and name is None:
        raise XTunerError("--private makes a pushed repository private: give --push-to-hub NAME as well.")
    if name is not None and args.layout == "original":
        raise XTunerError("--push-to-hub uploads the whole folder: leave --layout original out.")
    cfg = load_config(args.config, parse_overrides(args.cfg_options))
    check_exists(args.checkpoint)
    repository = None if name is None else prepare_repository(name, args.private)
    _convert(args, cfg)
    if repository is not None:
        get_logger().info("pushed: %s", push_folder(Path(args.save_path), repository))
    return 0


def _convert(args: argparse.Namespace, cfg: Any) -> None:
    import torch

    from xtuner.log import get_logger
    from xtuner.model.meta import meta_init
    from xtuner.registry import build
    from xtuner.tools.support.families import family_of_config

    # 1. the model's shape, which takes no memory
    start = time.perf_counter()
    dtype = None if args.dtype == "auto" else getattr(torch, _DTYPES[args.dtype])
    if any(cfg.model.get(name) for name in _ADAPTERS):
        _convert_adapted(args, cfg)
        return
    with meta_init():
        model = build(cfg.model)
    assistant = build(cfg.evaluation, model=model).assistant
    family = family_of_config(cfg)

    # 2. its weights, one after the other, into files
    if args.layout == "original":
        weights = family.published_weights(assistant, cfg.model, args.checkpoint, dtype, args.base)
        target = write_weights(args.save_path, weights)
    else:
        facts = describe_training(cfg, args.checkpoint, model.trainable)
        target = family.save_checkpoint(assistant, cfg.model, args.save_path, args.checkpoint, facts, dtype, args.base)
    get_logger().info("%s: %.1f MB in %.0f s", target, _size(target) / 1e6, time.perf_counter() - start)


def _convert_adapted(args: argparse.Namespace, cfg: Any) -> None:
    """A checkpoint of adapters: they are added to the weights of the model layer by layer while it is written."""
    import torch

    from xtuner.log import get_logger
    from xtuner.model.meta import meta_init
    from xtuner.registry import build
    from xtuner.tools.support.families import family_of_config
    from xtuner.tools.support.trained_model import build_trained

    if args.layout == "original":
        raise XTunerError(
            "--layout original has no names for adapters: drop the option, the default folder holds them merged."
        )
    if "quantization" in cfg.model.llm:
        # adapters are added to the weights as they were before they were quantised
        cfg.model.llm.quantization = None
    dtype = "saved" if args.dtype == "auto" else args.dtype
    model = build_trained(cfg, args.checkpoint, torch.device("cpu"), dtype, args.base)
    _save_adapters(model, cfg, args)
    cfg.model.update(dict.fromkeys(_ADAPTERS))
    get_logger().info("%s_adapters: only the adapters, in the format of peft", args.save_path)
    with meta_init():
        plain = build(cfg.model)
    if args.dtype != "auto":
        plain.to(getattr(torch, _DTYPES[args.dtype]))
    assistant = build(cfg.evaluation, model=plain).assistant
    facts = describe_training(cfg, args.checkpoint, model.trainable)
    family_of_config(cfg).save_pretrained(assistant, cfg.model, args.save_path, facts, model.merged_weights())


def _save_adapters(model: Any, cfg: Any, args: argparse.Namespace) -> None:
    """Writes the adapters alone, with the names and marks of what they belong to."""
    from xtuner.model.files.base import read_base
    from xtuner.model.lora import BASE_FILE

    folder = Path(f"{args.save_path}_adapters")
    stands_on = (read_base(args.checkpoint) or {}).get("checkpoint") or {"name": Path(args.checkpoint).name}
    paths = {part: cfg.model[part].get("name_or_path", "") for part in model.adapter_settings}
    model.save_adapters(folder, {part: "" if part in model.from_checkpoint else path for part, path in paths.items()})
    for part, path in paths.items():
        name = stands_on["name"] if part in model.from_checkpoint else Path(path).name
        described = {"name": name, "marks": model.part_marks(part)}
        (folder / part / BASE_FILE).write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")


def describe_training(cfg: Any, checkpoint: str, trained: Sequence[str]) -> dict[str, Any]:
    """Returns what config.json and the model card say of a checkpoint: settings and, where they stand beside it,
    results.

    The settings are those of the run, by its own config beside the checkpoint; where none is there, those of the
    config that was passed, and ``training_from`` says so. Paths are given by their last part: a folder must not tell
    of the machine that it was made on.

    Args:
        cfg: the config that was passed.
        checkpoint: its path.
        trained: parts that training changed.

    Returns:
        ``config``, ``checkpoint``, ``trained_parts``, ``training`` (settings), ``training_from``, ``passed`` (settings
        of `cfg` that the run had otherwise, None where `cfg` leaves them out), ``results``.
    """
    from xtuner.log import get_logger
    from xtuner.model.files.weight_files import pointed_at
    from xtuner.tools.support.run_settings import run_settings

    name, passed = Path(cfg.filename).stem, _facts_of(cfg)
    run = run_settings(checkpoint)
    settings = passed if run is None else _facts_of(run[1])
    origin = "the config passed to convert: no config of the run is beside the checkpoint"
    checkpoint_path = pointed_at(checkpoint)
    differing = {key: passed.get(key) for key in {**settings, **passed} if passed.get(key) != settings.get(key)}
    if differing:
        get_logger().info(
            "%s: the config passed differs from the run's own in %s: the model card tells both.",
            checkpoint_path,
            ", ".join(f"{key} ({value} for {settings.get(key)})" for key, value in differing.items()),
        )
    return {
        "config": name if run is None else run[0],
        "checkpoint": checkpoint_path.name,
        "trained_parts": list(trained),
        "training": settings,
        "training_from": origin if run is None else "the run's own config",
        "passed": differing,
        "results": _results(checkpoint_path.resolve().parent),
    }


def _facts_of(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that a model card tells, paths by their last part."""
    settings = {name: cfg.get(name) for name in _TRAINING_FACTS if cfg.get(name) is not None}
    for name, value in settings.items():
        if name.endswith("path"):
            values = value if isinstance(value, (list, tuple)) else [value]
            settings[name] = ", ".join(_last_part(entry) for entry in values)
    return settings


def _last_part(entry: Any) -> str:
    # a source of several may be a dict with a path of its own
    return Path(str(entry.get("data_path") if isinstance(entry, Mapping) else entry)).name


def _results(run: Path) -> dict[str, float]:
    """Returns ``overall`` of each benchmark whose metrics.json stands below the run's folder."""
    results: dict[str, float] = {}
    for file in sorted({*run.glob("*/metrics.json"), *run.glob("*/*/metrics.json")}):
        try:
            overall = read_json(file, dict).get("overall")
        except XTunerError:
            continue
        if isinstance(overall, (int, float)):
            results[file.parent.name] = round(float(overall), 4)
    return results


def write_weights(path: str | Path, weights: Any, base: dict[str, Any] | None = None) -> Path:
    """Writes named weights to a .pth, .pt, .bin or .safetensors file, or else to a folder of safetensors shards.

    Args:
        path: target; a file is replaced, a folder must be new or empty.
        weights: pairs of name and tensor.
        base: what the weights stand on, for a file of torch; see `xtuner.model.files.base`.

    Raises:
        XTunerError: the target is a folder with something in it.
    """
    from xtuner.model.files.checkpoints import save_file_atomic
    from xtuner.model.files.shards import ShardWriter

    path = Path(path)
    if path.suffix in (".pth", ".pt", ".bin", ".safetensors"):
        save_file_atomic(dict(weights) if base is None else {"state_dict": dict(weights), "base": base}, path)
        return path
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise XTunerError(f"'{path}' exists and is not empty: choose a new folder, nothing was overwritten.")
    path.mkdir(parents=True, exist_ok=True)
    writer = ShardWriter(path, 0)
    for name, tensor in weights:
        writer.add(name, tensor)
    writer.finish()
    return path


def _size(target: Path) -> int:
    files = target.rglob("*") if target.is_dir() else [target]
    return sum(file.stat().st_size for file in files if file.is_file())
