"""``xtuner copy-cfg``: a shipped config as one file of one's own."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from xtuner.tools.support.arguments import add_cfg_options

HELP = "Copy a config and everything that it reads from its bases into one file that loads from anywhere."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument("config", help="name or path of the config")
    parser.add_argument("save_dir", type=Path, help="folder for the copy; it is created if it does not exist")
    add_cfg_options(parser, "settings to change in the copy")


def run(args: argparse.Namespace) -> int:
    """Writes SAVE_DIR/<name>_copy.py and its path; refuses to replace a file."""
    from xtuner.config import config_name, dump_config, load_config, parse_overrides
    from xtuner.errors import XTunerError

    cfg = load_config(args.config, parse_overrides(args.cfg_options))
    # another name than the original's: a run's folder is named after its config
    target = args.save_dir / f"{config_name(cfg.filename)}_copy.py"
    if target.exists():
        raise XTunerError(f"{target} already exists and may hold your changes: remove it or choose another folder.")
    dump_config(cfg.as_written, target)
    sys.stdout.write(f"{target}\n")
    return 0
