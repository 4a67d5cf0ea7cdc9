"""``xtuner preprocess``: work on the data that is done once, before training."""

from __future__ import annotations

import argparse
from typing import Any

from xtuner.config import load_config, parse_overrides
from xtuner.log import get_logger
from xtuner.registry import resolve_type
from xtuner.tools.arguments import add_cfg_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the kinds of preparation as sub-commands."""
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    llava = kinds.add_parser(
        "llava",
        help="tokenise LLaVA records into a folder that training opens at once",
        description="Tokenises the records of a config's train_dataset into a memory-mapped folder. Set "
        "offline_processed_text_folder to that folder to train from it.",
    )
    llava.add_argument("--config", required=True, help="path or name of the config whose train_dataset is prepared")
    llava.add_argument("--out", required=True, help="folder to make; one made with the same settings is kept")
    llava.add_argument("--num-proc", type=int, help="processes (default: by the size of the file)")
    add_cfg_options(llava)


def run(args: argparse.Namespace) -> int:
    """Prepares the data of `args.config` in `args.out`."""
    prepare_llava(args.config, args.out, args.num_proc, args.cfg_options)
    return 0


def prepare_llava(config: str, out: str, num_proc: int | None, cfg_options: list[str]) -> None:
    """Lets the data set class that `config` names prepare itself in the folder `out`."""
    node = load_config(config, parse_overrides(cfg_options)).train_dataset
    dataset_class: Any = resolve_type(node["type"])
    dataset_class.prepare(node, out, num_proc)
    get_logger().info("Ready: set offline_processed_text_folder='%s' to train from it.", out)
