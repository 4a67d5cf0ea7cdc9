"""``xtuner convert quantize FOLDER NEW --scheme W4A16``: an exported folder with fewer bits in its language model."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

HELP = "an exported folder to one whose language model is quantised, for chat, serve, test and vLLM"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``xtuner convert quantize``."""
    parser.add_argument("folder", help="folder that `xtuner convert pth_to_hf` wrote")
    parser.add_argument("save_path", help="new folder")
    parser.add_argument(
        "--scheme",
        default="W4A16",
        help="bits of weights and of activations: W4A16 (default), W8A16 or W8A8",
    )


def run(args: argparse.Namespace) -> int:
    """Quantises; returns the exit code."""
    from xtuner.log import get_logger
    from xtuner.tools.support.families import family_of

    start = time.perf_counter()
    folder = Path(args.folder)
    target = family_of(folder).quantize_folder(folder, args.save_path, args.scheme)
    sizes = [sum(file.stat().st_size for file in path.glob("model*.safetensors")) / 1e6 for path in (folder, target)]
    get_logger().info(
        "%s: %.1f MB of weights in place of %.1f MB, in %.0f s",
        *(target, sizes[1], sizes[0], time.perf_counter() - start),
    )
    return 0
