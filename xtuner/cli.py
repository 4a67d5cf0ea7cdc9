"""The program ``xtuner``: one module of `xtuner.tools` per command, imported when it is asked for.

A command's module has ``add_arguments(parser)``, ``run(args) -> int`` (the exit code) and ``HELP`` (one
line). Packages add commands by entry points of the group ``xtuner.plugins``: the entry point's name is the
command, its value such a module.

Exit codes: 0 done, 1 a mistake in what was given, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.metadata
import importlib.util
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from xtuner import __version__
from xtuner.constants import NEEDED_MODULES, RESTRICT_TORCH
from xtuner.errors import XTunerError, nearest
from xtuner.threads import settle_waiting

COMMANDS = {
    "finetune": "from your own data to a model that answers: check, both stages, evaluation, export",
    "train": "train the model of a config; NPROC_PER_NODE or --launcher starts several processes",
    "test": "run a config's benchmarks on a checkpoint",
    "chat": "ask a checkpoint questions about pictures",
    "convert": "convert checkpoints to other formats",
    "list-cfg": "list the shipped configs, each with a line that says what it is",
    "new": "write the configs of both stages for your own data",
    "copy-cfg": "copy a config to edit it",
    "check-cfg": "report a config's mistakes, or its parts and the memory it needs",
    "log-dataset": "show samples of a config's data set as the model sees them",
    "browse-dataset": "write a page with pictures, boxes and prompts of a config's data",
    "check-dataset": "report every mistake in a config's data",
    "check-custom-dataset": "same as check-dataset, under XTuner's name",
    "list-dataset-format": "show the record formats that training reads",
    "preprocess": "prepare data before training",
    "doctor": "show what this machine offers: versions, GPUs, threads, optional parts, cache",
    "version": "show the versions of xtuner and its libraries",
}
"""The built-in commands, in the order of the help, each with its one line."""

PLUGIN_GROUP = "xtuner.plugins"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    Args:
        argv: the words after ``xtuner``; the process's own if None.
    """
    # importing peft imports bitsandbytes, which warns of a kernel that is not installed and mostly not wanted
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    # also where a library reads a file by itself; see xtuner.model.files.pickles
    os.environ[RESTRICT_TORCH] = "1"
    settle_waiting()
    words = list(sys.argv[1:] if argv is None else argv)
    plugins = {point.name: point for point in importlib.metadata.entry_points(group=PLUGIN_GROUP)}
    if not words or words[0] in ("-h", "--help"):
        (sys.stdout if words else sys.stderr).write(help_text(plugins))
        return 0 if words else 2
    command, rest = words[0], words[1:]
    if command == "--version":
        command = "version"
    if command not in COMMANDS and command not in plugins:
        hint = nearest(command, [*COMMANDS, *plugins])
        sys.stderr.write(f"xtuner: there is no command '{command}'.{hint} `xtuner --help` lists them all.\n")
        return 2
    try:
        if command in COMMANDS:
            module = importlib.import_module(f"xtuner.tools.{command.replace('-', '_')}")
        else:
            module = plugins[command].load()
        return run_command(command, module, rest)
    except XTunerError as error:
        sys.stderr.write(f"xtuner {command}: {error}\n")
        return 1
    except OSError as error:
        from xtuner.model.files.writing import disk_reason

        if (reason := disk_reason(error)) is None:
            raise
        sys.stderr.write(f"xtuner {command}: {reason}; free some disk space, or choose a place that you may use.\n")
        return 1
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in NEEDED_MODULES or importlib.util.find_spec(package) is not None:
            raise
        sys.stderr.write(
            f"xtuner {command}: '{package}' is not installed for {sys.executable}: install what this needs with "
            "`pip install -e .` in the source tree, or use the Python that has it.\n"
        )
        return 1
    except KeyboardInterrupt:
        sys.stderr.write(f"xtuner {command}: interrupted\n")
        return 130


def _plugin_line(point: importlib.metadata.EntryPoint) -> str:
    """The first sentence of a plugin's ``HELP``, read from its file; who made it where there is none to read."""
    package, *rest = point.module.split(".")
    spec = importlib.util.find_spec(package)
    for folder in (spec and spec.submodule_search_locations) or ():
        file = Path(folder).joinpath(*rest).with_suffix(".py")
        if file.is_file():
            for node in ast.parse(file.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "HELP":
                    line = str(ast.literal_eval(node.value)).split(". ")[0].rstrip(".")
                    return line[:1].lower() + line[1:]
    return f"from {point.dist.name if point.dist else point.value}"


class _Parser(argparse.ArgumentParser):
    """Suggests the nearest where a value is none of an argument's choices."""

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            error.message += f".{nearest(str(value), action.choices or ())}"
            raise


def sentence(line: str) -> str:
    """Returns a command's line in the list as what its own help begins with: a capital, a full stop."""
    return line and f"{line[0].upper()}{line[1:].rstrip('.')}."


def run_command(command: str, module: ModuleType, words: Sequence[str]) -> int:
    """Reads the arguments of a command's module and runs it; argparse's own exits become exit codes."""
    description = sentence(getattr(module, "HELP", None) or COMMANDS.get(command, ""))
    # no abbreviations: a mistyped option must not be taken for another
    parser = _Parser(prog=f"xtuner {command}", description=description, allow_abbrev=False)
    module.add_arguments(parser)
    try:
        args, unknown = parser.parse_known_args(words)
        if unknown:
            options = [option for action in parser._actions for option in action.option_strings]
            parser.error(f"unknown argument '{unknown[0]}'.{nearest(unknown[0].split('=')[0], options)}")
    except SystemExit as request:
        return request.code if isinstance(request.code, int) else int(request.code is not None)
    return module.run(args)


def help_text(plugins: dict[str, importlib.metadata.EntryPoint]) -> str:
    """Returns the list of commands. Plugins are read, not imported: help must come at once."""
    lines = {**COMMANDS, **{name: _plugin_line(point) for name, point in sorted(plugins.items())}}
    width = max(map(len, lines)) + 2
    rows = [f"  {name:<{width}}{line}" for name, line in lines.items()]
    return "\n".join(
        [
            f"xtuner {__version__}: assembles vision-language models from configs and trains them.",
            "",
            "usage: xtuner COMMAND [arguments]      `xtuner COMMAND --help` explains one",
            "",
            *rows,
            "",
        ]
    )
