"""``xtuner convert dataset IN OUT``: training data to Parquet shards that `datasets.load_dataset` opens."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from xtuner.errors import XTunerError
from xtuner.tools.model_converters.split import parse_size
from xtuner.tools.support.arguments import add_cfg_options

HELP = "training data (pictures, conversations, boxes) to Parquet shards that load_dataset opens"
_CONFIG = "fuse_vicuna7b_clip_L_14_336_pretrain_padding"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``xtuner convert dataset``."""
    parser.add_argument(
        "source",
        metavar="IN",
        help="records (JSON, Parquet, Arrow, WebDataset, hf://owner/name), or a config whose train_dataset is written",
    )
    parser.add_argument("save_path", metavar="OUT", help="new folder")
    parser.add_argument("--image-folder", metavar="DIR", help="folder or archive of the pictures that records name")
    parser.add_argument("--boxes", metavar="FILE", help="box file of the pictures")
    parser.add_argument(
        "--config", default=_CONFIG, help="config of the model family, where IN is records (default: a shipped one)"
    )
    parser.add_argument("--shard-size", default="500MB", metavar="SIZE", help="size of a file (default: 500MB)")
    parser.add_argument(
        "--group-size",
        default="10MB",
        metavar="SIZE",
        help="size of the pictures of a row group (default: 10MB)",
    )
    add_cfg_options(parser)


def run(args: argparse.Namespace) -> int:
    """Writes the data; returns the exit code."""
    from xtuner.config import load_config, parse_overrides
    from xtuner.registry import resolve_type

    sizes = parse_size(args.shard_size), parse_size(args.group_size)
    overrides: dict[str, Any] = parse_overrides(args.cfg_options)
    given = {"image_folder": args.image_folder, "box_json_path": args.boxes}
    if _is_data(args.source):
        data = {"data_path": args.source, **given, "image_folder": args.image_folder or ""}
        cfg = load_config(args.config, {**data, **overrides})
    else:
        cfg = load_config(args.source, {**{k: v for k, v in given.items() if v is not None}, **overrides})
    dataset_class: Any = resolve_type(cfg.train_dataset["type"])
    counts = dataset_class.write_records(cfg.train_dataset, args.save_path, *sizes)
    told = ", ".join(f"{count:,} {kind}" for kind, count in counts.items())
    sys.stdout.write(f"{args.save_path}: {told}\nopen it: datasets.load_dataset({args.save_path!r}, split='train')\n")
    return 0


def _is_data(source: str) -> bool:
    from xtuner.data.sources.locate import is_columnar, is_there

    if source.endswith(".py"):
        return False
    if is_columnar(source) or Path(source).suffix.lower() in (".json", ".jsonl"):
        if not is_there(source):
            raise XTunerError(f"'{source}' does not exist: expected records, or a config.")
        return True
    return os.path.isfile(source)
