"""``xtuner chat FOLDER``: questions about pictures in the terminal."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from xtuner.errors import XTunerError, nearest
from xtuner.log import console
from xtuner.tools.arguments import add_cfg_options
from xtuner.tools.exported import family_of

_COMMANDS = ("/image", "/draw", "/reset", "/help", "/exit")
_USAGE = (
    "/image PATH [BOX_FILE] shows a picture, /draw PATH saves it with its boxes, /reset forgets everything, /exit "
    "ends. Anything else is asked."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``xtuner chat``."""
    parser.description = "Ask a model about pictures: once with --prompt, else in a conversation."
    parser.epilog = f"In a conversation: {_USAGE}"
    parser.add_argument("model", help="folder of `xtuner convert pth_to_hf`, or name or path of a config")
    parser.add_argument("--checkpoint", metavar="PATH", help="weights to load into a config's model")
    parser.add_argument(
        "--image", action="append", default=[], metavar="FILE", help="picture; may be given several times"
    )
    parser.add_argument(
        "--boxes",
        default="none",
        metavar="FILE",
        help="box file of the pictures, or 'none' (default): no object tokens",
    )
    parser.add_argument("--prompt", metavar="TEXT", help="ask this, print the answer, end")
    parser.add_argument("--json", action="store_true", help="with --prompt: print question, answer and boxes as JSON")
    parser.add_argument("--draw", metavar="FILE", help="save the last --image with its boxes drawn")
    parser.add_argument("--max-new-tokens", type=int, default=512, metavar="N", help="longest answer (default: 512)")
    parser.add_argument("--device", help="cpu, cuda, mps, … (default: a GPU if there is one)")
    parser.add_argument(
        "--precision",
        choices=("auto", "bf16", "fp16", "fp32"),
        default="auto",
        help="number format (default: bf16 or fp16 on a GPU, fp32 on the CPU)",
    )
    add_cfg_options(parser)


def run(args: argparse.Namespace) -> int:
    """Answers; returns the exit code."""
    _check(args)
    session = _load(args).start_chat()
    box_file = None if args.boxes == "none" else args.boxes
    for path in args.image:
        session.add_picture(path, box_file)
    if args.draw:
        session.draw(args.draw)
    if args.prompt is None:
        return converse(session, args.max_new_tokens, box_file)
    if args.json:
        answer = session.ask(args.prompt, args.max_new_tokens)
        row = {"prompt": args.prompt, "answer": answer, **session.describe()}
        sys.stdout.write(json.dumps(row, ensure_ascii=False) + "\n")
        return 0
    _ask_aloud(session, args.prompt, args.max_new_tokens)
    return 0


def _check(args: argparse.Namespace) -> None:
    """Finds what is wrong before minutes go into loading a model."""
    for path in (*args.image, *([] if args.boxes == "none" else [args.boxes])):
        if not Path(path).is_file():
            raise XTunerError(f"'{path}' does not exist: check --image and --boxes.")
    if args.json and args.prompt is None:
        raise XTunerError("--json prints the answer to --prompt: give one.")
    if args.draw and not args.image:
        raise XTunerError("--draw saves a picture with its boxes: give one with --image.")
    if args.max_new_tokens < 1:
        raise XTunerError(f"--max-new-tokens is {args.max_new_tokens}: expected at least 1.")


def _load(args: argparse.Namespace) -> Any:
    """Returns the assistant of an exported folder or of a config with a checkpoint."""
    import torch

    from xtuner.engine.precision import resolve_precision

    device = torch.device(args.device or _default_device())
    precision = resolve_precision(args.precision, device)
    if Path(args.model).is_dir():
        if args.checkpoint or args.cfg_options:
            raise XTunerError(
                "--checkpoint and --cfg-options go with a config; an exported folder has everything in it."
            )
        return family_of(Path(args.model)).load_assistant(args.model, device, precision.dtype)
    from xtuner.config import find_config, load_config, parse_overrides
    from xtuner.registry import build
    from xtuner.tools.trained_model import build_trained

    try:
        config = find_config(args.model)
    except XTunerError as error:
        raise XTunerError(f"'{args.model}' is no exported folder either. {error}") from error
    cfg = load_config(config, parse_overrides(args.cfg_options))
    model = build_trained(cfg, args.checkpoint, device, precision.name)
    return build(cfg.evaluation, model=model).assistant


def _default_device() -> str:
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def converse(session: Any, max_new_tokens: int, box_file: str | None) -> int:
    """Reads questions and commands line by line until /exit or the end of the input."""
    console.print(_USAGE, style="dim")
    while True:
        try:
            line = console.input("[bold]> [/bold]").strip()
        except EOFError:
            return 0
        if not line:
            continue
        command, _, rest = line.partition(" ")
        if command == "/exit":
            return 0
        try:
            if not _obey(session, command, rest.strip(), box_file):
                _ask_aloud(session, line, max_new_tokens)
        except XTunerError as error:
            console.print(str(error), style="red", markup=False)
        except KeyboardInterrupt:
            console.print("\ninterrupted: this question is forgotten, those before it are kept", style="yellow")


def _obey(session: Any, command: str, rest: str, box_file: str | None) -> bool:
    """Carries out a command; returns False where the line is a question."""
    if not command.startswith("/"):
        return False
    words = rest.split()
    if command == "/image" and words:
        count = session.add_picture(words[0], words[1] if len(words) > 1 else box_file)
        console.print(f"{words[0]}: shown with {count} boxes", style="dim", markup=False)
    elif command == "/draw" and rest:
        session.draw(rest)
        console.print(f"saved {rest}", style="dim", markup=False)
    elif command == "/reset":
        session.reset()
        console.print("everything is forgotten", style="dim")
    else:
        hint = "" if command in _COMMANDS else nearest(command, _COMMANDS)
        console.print(f"{_USAGE}{hint}", style="dim", markup=False)
    return True


def _ask_aloud(session: Any, text: str, max_new_tokens: int) -> None:
    """Asks, and writes the answer to standard output as it comes."""

    def write(piece: str) -> None:
        sys.stdout.write(piece)
        sys.stdout.flush()

    session.ask(text, max_new_tokens, on_text=write)
    sys.stdout.write("\n")
