"""Arguments that several commands share."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from xtuner.errors import ProblemsError, XTunerError

OWN = "own"
BACKENDS = (OWN, "vllm")


def add_cfg_options(parser: argparse.ArgumentParser, help_text: str = "settings of the config to override") -> None:
    """Adds ``--cfg-options KEY=VALUE ...``, which may be given more than once; see `xtuner.config.parse_overrides`."""
    parser.add_argument("--cfg-options", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help=help_text)


def add_base(parser: argparse.ArgumentParser) -> None:
    """Adds ``--base PATH``; see `xtuner.model.files.base`."""
    parser.add_argument(
        "--base",
        metavar="PATH",
        help="where the checkpoint that the given one was trained on is now, if it has moved (adapters, frozen LLM)",
    )


def add_answering_model(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of a command that loads one model to answer with, as `load_assistant` reads them."""
    parser.add_argument("model", help="a folder written by `xtuner convert pth_to_hf`, or the name or path of a config")
    parser.add_argument("--checkpoint", metavar="PATH", help="weights to load into a config's model")
    parser.add_argument("--device", help="cpu, cuda, mps, … (default: a GPU if the machine has one)")
    parser.add_argument(
        "--precision",
        choices=("auto", "bf16", "fp16", "fp32"),
        default="auto",
        help="number format (default: bf16 or fp16 on a GPU, fp32 on the CPU)",
    )
    parser.add_argument(
        "--quantization",
        choices=("4bit", "8bit"),
        help="quantize the language model of an exported folder (needs bitsandbytes)",
    )
    add_base(parser)
    add_cfg_options(parser)


def add_backend(parser: argparse.ArgumentParser) -> None:
    """Adds ``--backend`` and ``--backend-options``."""
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        default=OWN,
        help="what generates the answers of --checkpoint: this package (default), or vLLM in this process, which takes "
        "folders that 'xtuner convert' wrote",
    )
    parser.add_argument(
        "--backend-options",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="settings of --backend vllm, as vLLM's LLM takes them, e.g. max_model_len=2048 tensor_parallel_size=2",
    )


def refuse(problems: Sequence[str]) -> None:
    """Refuses what is wrong with a command's arguments, one sentence each.

    Raises:
        XTunerError: there is a problem.
    """
    if len(problems) == 1:
        raise XTunerError(problems[0])
    if problems:
        raise ProblemsError("the arguments", problems)


def check_folder(folder: Path, option: str) -> None:
    """Refuses an option's folder that cannot be written to, or made.

    Raises:
        XTunerError: a file stands there or above it, it is on a disk that may only be read, or its name is too long.
    """
    try:
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    except OSError as error:
        raise XTunerError(f"{option} {folder} cannot be made ({error.strerror}): name another folder.") from error
    if not there.is_dir():
        what = "is a file" if there == folder else f"cannot be made: '{there}' is a file"
        raise XTunerError(f"{option} {folder} {what}; name a folder, which is made where it does not exist.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise XTunerError(f"{option} {folder}: nothing may be written to '{there}', so choose another folder.")
