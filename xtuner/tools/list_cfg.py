"""``xtuner list-cfg``: the names of the shipped configs."""

from __future__ import annotations

import argparse
import fnmatch
import sys

HELP = "List the shipped configs. You can pass each name to the other commands."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument("-p", "--pattern", help="list only names that contain this text, e.g. vicuna or 'llava*sft'")


def run(args: argparse.Namespace) -> int:
    """Writes one name a line; exits 1 where none matches."""
    from xtuner.config import list_configs
    from xtuner.errors import XTunerError, nearest

    names = list_configs()
    pattern = (args.pattern or "").lower()
    matching = [name for name in names if fnmatch.fnmatchcase(name.lower(), f"*{pattern}*")]
    if not matching:
        raise XTunerError(f"No config's name contains '{args.pattern}'.{nearest(args.pattern or '', names)}")
    sys.stdout.write("".join(f"{name}\n" for name in matching))
    return 0
