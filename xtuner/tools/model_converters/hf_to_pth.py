"""``xtuner convert hf_to_pth FOLDER SAVE_PATH``: the trained parts of an exported folder back to one file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from xtuner.errors import XTunerError
from xtuner.json_values import read_json

_HOLD_A_BASE = (".pth", ".pt", ".bin")
"""Files that hold more than weights: what they stand on as well."""
HELP = "an exported folder back to a checkpoint for train and test"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``xtuner convert hf_to_pth``."""
    parser.add_argument("folder", help="folder that `xtuner convert pth_to_hf` wrote")
    parser.add_argument("save_path", help=".pth or .safetensors file, or a new folder for shards")
    parser.add_argument(
        "--parts",
        nargs="+",
        metavar="PART",
        help="parts to write; 'all' writes every part (default: the trained parts)",
    )
    parser.add_argument(
        "--layout", choices=("ours", "original"), default="ours", help="naming scheme of the weights (default: ours)"
    )


def _base_of(folder: Path, family: Any, parts: list[str], target: Path) -> dict[str, Any]:
    """What the file stands on: the parts that it leaves out are those of the folder."""
    from xtuner.model.files.base import describe_base

    base = describe_base({}, str(folder), frozenset(parts), parts, target.parent)
    model = family.load_model(folder, dtype="auto").core
    return {**base, "parts": {part: {**base["parts"][part], "marks": model.part_marks(part)} for part in parts}}


def run(args: argparse.Namespace) -> int:
    """Converts; returns the exit code."""
    from xtuner.log import get_logger
    from xtuner.model.files.weight_files import open_weights
    from xtuner.tools.model_converters.pth_to_hf import write_weights
    from xtuner.tools.support.families import family_of

    folder = Path(args.folder)
    family = family_of(folder)
    weights = open_weights(folder)
    present = sorted({name.split(".")[0] for name in weights})
    source = read_json(folder / "config.json", dict).get("source", {})
    parts = args.parts or source.get("trained_parts") or ["all"]
    unknown = [part for part in parts if part not in (*present, "all")]
    if args.parts and unknown:
        raise XTunerError(
            f"'{folder}' has no part '{unknown[0]}': expected one or more of {', '.join(present)}, or all."
        )
    if "all" in parts:
        parts = present
    chosen = {name: weight for name, weight in weights.items() if name.split(".")[0] in parts}
    if args.layout == "original":
        chosen = family.to_published_names(chosen)
    left_out = [part for part in present if part not in parts]
    target, base = Path(args.save_path), None
    if left_out and target.suffix in _HOLD_A_BASE:
        base = _base_of(folder, family, left_out, target)
    write_weights(target, ((name, weight.load()) for name, weight in chosen.items()), base)
    get_logger().info("%s: %d weights of %s", target, len(chosen), ", ".join(part for part in parts if part in present))
    return 0
