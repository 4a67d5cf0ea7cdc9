"""``xtuner convert``: checkpoints and data into other formats; one module of `xtuner.tools.model_converters` each."""

from __future__ import annotations

import argparse

from xtuner.tools.model_converters import (
    dataset,
    from_llava,
    hf_to_pth,
    merge,
    pth_to_hf,
    quantize,
    split,
    to_llava,
    universal,
)

_CONVERTERS = {
    "pth_to_hf": pth_to_hf,
    "hf_to_pth": hf_to_pth,
    "merge": merge,
    "quantize": quantize,
    "split": split,
    "universal": universal,
    "from_llava": from_llava,
    "to_llava": to_llava,
    "dataset": dataset,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds a subcommand per converter."""
    commands = parser.add_subparsers(dest="converter", required=True, metavar="{" + ",".join(_CONVERTERS) + "}")
    for name, module in _CONVERTERS.items():
        about = f"Convert {module.HELP}."
        module.add_arguments(commands.add_parser(name, help=module.HELP, description=about, allow_abbrev=False))


def run(args: argparse.Namespace) -> int:
    """Runs the converter that was named; returns the exit code."""
    return _CONVERTERS[args.converter].run(args)
