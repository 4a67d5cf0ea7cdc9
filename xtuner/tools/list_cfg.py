"""``xtuner list-cfg``: the names of the shipped configs, and what each is."""

from __future__ import annotations

import argparse
import ast
import fnmatch
import sys
from pathlib import Path

HELP = "List the shipped configs by folder, each with a line that says what it is. Every command takes these names."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument("-p", "--pattern", help="list only names that contain this text, e.g. vicuna or 'llava*sft'")
    parser.add_argument("--names", action="store_true", help="write the names alone, one a line, for scripts")


def run(args: argparse.Namespace) -> int:
    """Writes one config a line; exits 1 where none matches."""
    from xtuner.config import list_configs
    from xtuner.errors import XTunerError, nearest

    configs = list_configs()
    pattern = (args.pattern or "").lower()
    matching = [name for name in configs if fnmatch.fnmatchcase(name.lower(), f"*{pattern}*")]
    if not matching:
        raise XTunerError(f"No config's name contains '{args.pattern}'.{nearest(args.pattern or '', configs)}")
    if args.names:
        sys.stdout.write("".join(f"{name}\n" for name in matching))
        return 0
    groups: dict[str, list[str]] = {}
    for name in matching:
        groups.setdefault(configs[name].parent.name, []).append(name)
    width = max(map(len, matching))
    for group, names in groups.items():
        rows = [f"  {name:<{width}}  {first_line(configs[name])}".rstrip() for name in names]
        sys.stdout.write("\n".join([group, *rows, "", ""]))
    return 0


def first_line(config: Path) -> str:
    """Returns the first line of a config's docstring; empty where it has none."""
    return (ast.get_docstring(ast.parse(config.read_text(encoding="utf-8"))) or "").partition("\n")[0]
