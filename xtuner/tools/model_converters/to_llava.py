"""``xtuner convert to_llava FOLDER SAVE_PATH``: an exported low-resolution baseline to transformers' LLaVA."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "an exported low-resolution baseline (configs llava_*) to a folder of transformers' LLaVA-1.5"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``xtuner convert to_llava``."""
    parser.add_argument("folder", help="folder that `xtuner convert pth_to_hf` wrote")
    parser.add_argument("save_path", help="new folder")


def run(args: argparse.Namespace) -> int:
    """Converts; returns the exit code."""
    from xtuner.log import get_logger
    from xtuner.tools.support.families import family_of

    folder = Path(args.folder)
    get_logger().info("%s: LLaVA-1.5 of transformers", family_of(folder).to_llava(folder, args.save_path))
    return 0
