"""``xtuner convert from_llava FOLDER SAVE_PATH``: a published LLaVA to a config's parts and a stage-1 checkpoint."""

from __future__ import annotations

import argparse
import shlex

HELP = "a LLaVA (transformers' layout or its own code's) to the parts that a config continues from"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``xtuner convert from_llava``."""
    parser.add_argument("folder", help="LLaVA 1.5 or 1.6: a folder of transformers (llava-hf) or of LLaVA's own code")
    parser.add_argument("save_path", help="new folder: llm, clip and stage1.pth")
    parser.add_argument(
        "--base",
        metavar="PATH",
        help="folder of the language model, for a LLaVA of adapters (LoRA) or of a projector alone",
    )
    parser.add_argument(
        "--vision-tower", metavar="PATH", help="folder or Hub name of CLIP, instead of the one that FOLDER names"
    )


def run(args: argparse.Namespace) -> int:
    """Converts, and logs the settings that continue it; returns the exit code."""
    from xtuner.log import get_logger
    from xtuner.tools.support.families import family_offering

    settings = family_offering("from_llava").from_llava(args.folder, args.save_path, args.base, args.vision_tower)
    options = " ".join(shlex.quote(f"{key}={value}") for key, value in settings.items())
    get_logger().info("%s: continue it with --cfg-options %s", args.save_path, options)
    return 0
