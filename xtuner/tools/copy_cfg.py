"""``xtuner copy-cfg``: a shipped config as one file of one's own."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from xtuner.tools.support.arguments import add_cfg_options

HELP = "Copy a config and everything that it reads from its bases into one file that loads from anywhere."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument("config", help="name or path of the config")
    parser.add_argument("save_dir", type=Path, help="folder for the copy; it is created if it does not exist")
    add_cfg_options(parser, "settings to change in the copy")


def run(args: argparse.Namespace) -> int:
    """Writes SAVE_DIR/<name>_copy.py and its path; refuses to replace a file."""
    from xtuner.config import config_name, dump_config, find_config, join_config, load_config, parse_overrides
    from xtuner.config.schema import UNUSED
    from xtuner.errors import XTunerError
    from xtuner.log import get_logger

    overrides = parse_overrides(args.cfg_options)
    cfg = load_config(args.config, overrides)
    unused = cfg.as_written.get(UNUSED, ())
    # another name than the original's: a run's folder is named after its config
    target = args.save_dir / f"{config_name(cfg.filename)}_copy.py"
    if target.exists():
        raise XTunerError(f"{target} already exists and may hold your changes: remove it or choose another folder.")
    args.save_dir.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.stem}.partial.py")
    try:
        partial.write_text(join_config(find_config(args.config), overrides, unused), encoding="utf-8")
        same = _same(load_config(partial), cfg)
        if same:
            partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    if not same:
        # Python that means something else in another file, say a name that two bases share
        get_logger().warning("%s: joined, its files would mean something else; the copy is a dump.", cfg.filename)
        dump_config(cfg.as_written, target)
    sys.stdout.write(f"{target}\n")
    return 0


def _same(first: Any, second: Any) -> bool:
    """Says whether two configs are alike but for what tells of their files."""
    told = {"resolved_from", "unused_settings"}
    return {k: v for k, v in first.items() if k not in told} == {k: v for k, v in second.items() if k not in told}
