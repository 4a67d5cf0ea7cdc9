"""What a page of the documentation claims about this project, and which of its claims do not hold.

Each function takes a page's text and returns one line per fault. What stands for something of the reader's own is left
alone: names in capitals (``CONFIG``), in angle brackets, and names that begin with ``my_``.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import itertools
import re
import shlex
import textwrap
from collections.abc import Iterator
from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path

from xtuner.cli import COMMANDS, PLUGIN_GROUP
from xtuner.config import list_configs, load_config, parse_overrides
from xtuner.config.joining import base_path
from xtuner.errors import XTunerError
from xtuner.registry import import_object

ROOT = Path(__file__).parents[2]
DEFAULT_CONFIG = "fuse_vicuna7b_clip_L_14_336_sft_padding"
OTHER_PROGRAMS = {"hf", "lmms-eval", "pip", "sbatch"}
OTHER_OPTIONS = {"--kill-on-bad-exit", "--shm-size", "--ipc"}
OTHER_ARGUMENTS = {"quantization_config"}
"""What the text mentions of programs other than ours."""

_FENCED = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"(?<![\w/.-])(?:configs|docs|mg_llava|xtuner|script|tools|tests|requirements)/[\w./{},*-]+")
_OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*")


def python_blocks(text: str) -> list[str]:
    """Returns the fenced Python blocks of a page, without their indentation."""
    return [textwrap.dedent(body) for _, language, body in _FENCED.findall(text) if language == "python"]


def code_lines(text: str) -> list[str]:
    """Returns the lines of all blocks but Python's and the code spans: continued lines joined, comments dropped."""
    blocks = [body for _, language, body in _FENCED.findall(text) if language != "python"]
    prose = _FENCED.sub("", text)
    blocks += [line for line in re.sub(r"\\\n", " ", prose).split("\n") if line.startswith("    ")]
    spans = re.findall(r"`([^`]+)`", "\n".join(line for line in prose.split("\n") if not line.startswith("    ")))
    lines = [line for block in blocks for line in re.sub(r"\\\n", " ", block).split("\n")]
    return [re.sub(r"(^|\s)# .*", "", line).strip() for line in [*lines, *(" ".join(span.split()) for span in spans)]]


def missing_files(text: str) -> list[str]:
    """Finds paths below the project's folders that do not exist; ``{a,b}`` and ``*`` are expanded."""
    faults = []
    for written in _FILE.findall(text):
        path = written.rstrip(".,-")
        if "/my_" in path:
            continue
        faults += [f"no file {one}" for one in _expand_braces(path) if not any(ROOT.glob(one.rstrip("/")))]
    return faults


def broken_links(text: str, folder: Path) -> list[str]:
    """Finds relative links to absent files or headings; `folder` is the page's."""
    faults = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        if path and not (folder / path).exists():
            faults.append(f"no file {path}")
        elif anchor and anchor not in _anchors((folder / path).read_text("utf-8") if path else text):
            faults.append(f"no heading #{anchor} in {path or 'this page'}")
    return faults


def unknown_names(text: str) -> list[str]:
    """Finds configs, and dotted names of the packages, that do not exist."""
    shipped = list_configs()
    named = re.findall(r"\b(?:fuse|llava|tiny)_\w+_(?:pretrain|sft)_padding\b", text)
    faults = [f"no config {name}" for name in named if name not in shipped]
    for name in re.findall(r"(?<![\w/.-])(?:mg_llava|xtuner)(?:\.\w+)+(?![\w/])", "\n".join(code_lines(text))):
        if name.endswith((".py", ".yaml", ".toml", ".txt")) or name == PLUGIN_GROUP or ".my_" in name:
            continue
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            try:
                import_object(name)
            except XTunerError as error:
                faults.append(str(error))
    return faults


def faulty_python(text: str) -> list[str]:
    """Finds Python blocks that do not compile, or that import what the packages do not have."""
    faults = []
    for block in python_blocks(text):
        try:
            tree = ast.parse(block)
        except SyntaxError as error:
            faults.append(f"block '{block[:40]}' does not compile: {error}")
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("mg_llava", "xtuner"):
                if str(node.module).startswith("xtuner.configs."):
                    # a base that a config reads; only mmengine can
                    faults += [] if base_path(str(node.module), 0, ROOT).is_file() else [f"no config {node.module}"]
                    continue
                module = importlib.import_module(str(node.module))
                faults += [f"{node.module} has no {a.name}" for a in node.names if not hasattr(module, a.name)]
    return faults


def unknown_options(text: str) -> list[str]:
    """Finds commands and options that their program does not have."""
    faults = []
    for line in code_lines(text):
        command = re.search(r"\bxtuner ([a-z][\w-]*)(?: ([a-z]\w*)\b)?", line)
        tool = re.search(r"\b(?:tools|xtuner/tools)/[\w/]+\.py\b", line)
        if line.split(" ")[0] in OTHER_PROGRAMS:
            continue
        ours = _OPTION.findall(line[tool.start() if tool else 0 :].split(" -- ")[0])
        if command:
            if command[1] not in _command_modules():
                faults.append(f"no command xtuner {command[1]}")
                continue
            subcommands, known = _options_of(command[1])
            if subcommands and command[2] and command[2] not in subcommands:
                faults.append(f"no xtuner {command[1]} {command[2]}")
            faults += [f"xtuner {command[1]} has no {option}" for option in ours if option not in known]
        elif tool and (ROOT / tool[0]).is_file():
            faults += [f"{tool[0]} has no {option}" for option in ours if not _mentions(tool[0], option)]
        elif line.startswith("--") or "script/" in line:
            faults += [f"nothing here has {option}" for option in ours if option not in _all_options()]
    return faults


def unknown_settings(text: str) -> list[str]:
    """Finds settings after ``--cfg-options`` that the config of the command, or else an SFT config, refuses."""
    faults = []
    for line in code_lines(text):
        before, found, after = line.partition("--cfg-options ")
        if not found:
            continue
        words = itertools.takewhile(lambda word: not word.startswith("--"), shlex.split(after.replace("=...", "=x")))
        words = [word for word in words if "=" in word and not word.startswith("k=")]
        names = [word for word in before.split() if word in list_configs()]
        detector = any(word.startswith("detector") for word in words)
        try:
            load_config(names[0] if names else "owlv2" if detector else DEFAULT_CONFIG, parse_overrides(words))
        except XTunerError as error:
            faults.append(str(error))
    return faults


def unknown_assignments(text: str) -> list[str]:
    """Finds spans of ``name=value`` whose name is no setting of the shipped configs and no argument in the packages."""
    spans = [line for line in code_lines(text) if re.fullmatch(r"[a-z]\w*=\S+( [a-z]\w*=\S+)*", line)]
    spans += re.findall(r'(?:PRETRAIN|SFT)_OPTIONS="([^"]*)"', text)
    names = [word.partition("=")[0] for span in spans for word in span.split()]
    return [f"nothing takes {name}=" for name in names if name not in _settings_and_arguments()]


def _expand_braces(path: str) -> Iterator[str]:
    found = re.search(r"\{([^}]*)\}", path)
    if not found:
        yield path
        return
    for choice in found[1].split(","):
        yield from _expand_braces(path[: found.start()] + choice + path[found.end() :])


def _anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", _FENCED.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@lru_cache
def _command_modules() -> dict[str, str]:
    plugins = {point.name: point.value for point in entry_points(group=PLUGIN_GROUP)}
    return {name: f"xtuner.tools.{name.replace('-', '_')}" for name in COMMANDS} | plugins


@lru_cache
def _options_of(command: str) -> tuple[frozenset[str], frozenset[str]]:
    """Returns the sub-commands of a command, and the options of it and of them."""
    parser = argparse.ArgumentParser()
    importlib.import_module(_command_modules()[command]).add_arguments(parser)
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    subcommands = {name: sub for group in groups for name, sub in group.choices.items()}
    parsers = [parser, *subcommands.values()]
    options = {option for one in parsers for action in one._actions for option in action.option_strings}
    return frozenset(subcommands), frozenset(options)


def _mentions(tool: str, option: str) -> bool:
    """True if the tool's file has `option` as a text; one that only starts `xtuner` has the options of its commands."""
    source = (ROOT / tool).read_text("utf-8")
    return f'"{option}"' in source or ("xtuner.cli import main" in source and option in _all_options())


@lru_cache
def _all_options() -> frozenset[str]:
    """Returns the options of all commands, of the scripts' launcher and of the tools, and OTHER_OPTIONS."""
    commands = [_options_of(name)[1] for name in _command_modules()]
    texts = [path.read_text("utf-8") for path in [ROOT / "script/launch.sh", *(ROOT / "tools").rglob("*.py")]]
    return frozenset(OTHER_OPTIONS).union(*commands, *(_OPTION.findall(text) for text in texts))


@lru_cache
def _settings_and_arguments() -> frozenset[str]:
    written = [load_config(name).as_written for name in (DEFAULT_CONFIG, "owlv2")]
    sources = [path.read_text("utf-8") for package in ("mg_llava", "xtuner") for path in (ROOT / package).rglob("*.py")]
    arguments = {node.arg for source in sources for node in ast.walk(ast.parse(source)) if isinstance(node, ast.arg)}
    return frozenset(OTHER_ARGUMENTS).union(arguments, *written)
