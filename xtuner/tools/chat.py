"""``xtuner chat FOLDER``: questions about pictures in the terminal."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from xtuner.errors import XTunerError, counted, nearest
from xtuner.log import console
from xtuner.tools.support.arguments import add_base, add_cfg_options

_COMMANDS = ("/image", "/boxes", "/draw", "/explain", "/reset", "/help", "/exit")
_USAGE = (
    "/image PATH [BOX_FILE] adds a picture, /boxes none|detector|BOX_FILE replaces its boxes, /draw PATH "
    "saves it with its boxes, /explain PATH colours each box by its influence on the last answer, /reset forgets "
    "everything, /exit ends the conversation. Any other text is a question."
)
_NONE, _DETECTOR = "none", "detector"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``xtuner chat``."""
    parser.description = "Ask a model about pictures. With --prompt you get one answer, without it a conversation."
    parser.epilog = f"In a conversation: {_USAGE}"
    parser.add_argument("model", help="folder that `xtuner convert pth_to_hf` wrote, or name or path of a config")
    parser.add_argument("--checkpoint", metavar="PATH", help="weights to load into the model of a config")
    parser.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="FILE",
        help="picture to ask about; repeat the option for several",
    )
    parser.add_argument(
        "--boxes",
        default=_NONE,
        metavar="none|detector|FILE",
        help="source of the boxes: none (the default, no object tokens), detector, or the path of a box file",
    )
    parser.add_argument(
        "--detector",
        default="owlv2",
        metavar="CONFIG",
        help="with --boxes detector: config whose `detector` finds the boxes (default: owlv2)",
    )
    parser.add_argument(
        "--explain",
        metavar="FILE",
        help="with --prompt: save the last --image with each box coloured by its influence on the answer",
    )
    parser.add_argument(
        "--quantization",
        choices=("4bit", "8bit"),
        help="quantize the language model of an exported folder (needs bitsandbytes)",
    )
    parser.add_argument("--prompt", metavar="TEXT", help="ask this question, print the answer and exit")
    parser.add_argument(
        "--json", action="store_true", help="with --prompt: print the question, answer and boxes as JSON"
    )
    parser.add_argument("--draw", metavar="FILE", help="save the last --image with its boxes drawn")
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        default=512,
        metavar="N",
        help="largest number of tokens in an answer (default: 512)",
    )
    parser.add_argument("--device", help="cpu, cuda, mps, … (default: a GPU if the machine has one)")
    parser.add_argument(
        "--precision",
        choices=("auto", "bf16", "fp16", "fp32"),
        default="auto",
        help="number format (default: bf16 or fp16 on a GPU, fp32 on the CPU)",
    )
    add_base(parser)
    add_cfg_options(parser)


def run(args: argparse.Namespace) -> int:
    """Answers; returns the exit code."""
    _check(args)
    from xtuner.tools.support.answering import load_assistant, load_detector
    from xtuner.tools.support.families import family_of_object

    assistant = load_assistant(args)
    detector = load_detector(args) if args.boxes == _DETECTOR else None
    session = family_of_object(assistant).ChatSession(assistant, detector)
    box_file = None if args.boxes in (_NONE, _DETECTOR) else args.boxes
    for path in args.image:
        session.add_picture(path, box_file)
        _tell(session)
    if args.draw:
        session.draw(args.draw)
    if args.prompt is None:
        return converse(session, args.max_new_tokens, box_file)
    _answer(session, args)
    return 0


def _answer(session: Any, args: argparse.Namespace) -> None:
    """One question: as text while it comes, or as JSON."""
    turns = session.turns
    if args.json:
        answer = session.ask(args.prompt, args.max_new_tokens)
        row = {"prompt": args.prompt, "answer": answer, **session.describe()}
    else:
        answer, row = _ask_aloud(session, args.prompt, args.max_new_tokens), None
    if args.explain:
        weights = _explain(session, args.explain, args.prompt, answer, turns)
        if row is not None:
            row["weights"] = weights
    if row is not None:
        sys.stdout.write(json.dumps(row, ensure_ascii=False) + "\n")


def _explain(session: Any, path: str, question: str, answer: str, before: Any) -> list[dict[str, Any]]:
    """Saves the last picture with its boxes coloured, lists them, and returns label and weight of each."""
    weights = session.explain(question, answer, before)
    found = session.last_boxes
    labels = () if found is None else found.labels
    session.draw(path, weights)
    rows = [{"label": label, "weight": round(weight, 4)} for label, weight in zip(labels, weights, strict=True)]
    for row in sorted(rows, key=lambda row: -abs(row["weight"])):
        console.print(f"{row['weight']:+8.3f}  {row['label']}", style="dim", markup=False)
    return rows


def _tell(session: Any) -> None:
    for note in session.notes:
        console.print(note, style="yellow", markup=False)


def _check(args: argparse.Namespace) -> None:
    """Finds what is wrong before minutes go into loading a model."""
    for path in (*args.image, *([] if args.boxes in (_NONE, _DETECTOR) else [args.boxes])):
        if not Path(path).is_file():
            raise XTunerError(f"'{path}' does not exist: check --image and --boxes.")
    if args.json and args.prompt is None:
        raise XTunerError("--json prints the answer to --prompt: add --prompt.")
    if args.explain and (args.prompt is None or not args.image):
        raise XTunerError(
            "--explain colours the boxes of a picture for the answer to --prompt: add --prompt and --image."
        )
    if args.draw and not args.image:
        raise XTunerError("--draw saves a picture with its boxes: add --image.")
    if args.max_new_tokens < 1:
        raise XTunerError(f"--max-new-tokens is {args.max_new_tokens}: expected at least 1.")


def converse(session: Any, max_new_tokens: int, box_file: str | None) -> int:
    """Reads questions and commands line by line until /exit, the end of the input, or Ctrl-C twice."""
    console.print(_USAGE, style="dim")
    last: tuple[str, str, Any] | None = None
    warned = False
    while True:
        try:
            line = console.input("[bold]> [/bold]").strip()
        except EOFError:
            return 0
        except KeyboardInterrupt:
            # one that was meant for an answer may come when it has just ended
            if warned:
                raise
            warned = True
            console.print("\nPress Ctrl-C again or Ctrl-D, or type /exit, to end the conversation", style="yellow")
            continue
        warned = False
        if not line:
            continue
        command, _, rest = line.partition(" ")
        if command == "/exit":
            return 0
        try:
            if not _obey(session, command, rest.strip(), box_file):
                before = session.turns
                last = (line, _ask_aloud(session, line, max_new_tokens), before)
            elif command in ("/image", "/reset"):
                last = None
            elif command == "/explain" and rest and last is not None:
                _explain(session, rest.strip(), *last)
        except XTunerError as error:
            console.print(str(error), style="red", markup=False)
        except KeyboardInterrupt:
            console.print("\ninterrupted: the model forgets this question and keeps the earlier ones", style="yellow")


def _obey(session: Any, command: str, rest: str, box_file: str | None) -> bool:
    """Carries out a command; returns False where the line is a question."""
    if not command.startswith("/"):
        return False
    words = _paths(rest) if command == "/image" else []
    if words:
        count = session.add_picture(words[0], words[1] if len(words) > 1 else box_file)
        console.print(f"{words[0]}: added with {counted(count, 'boxes')}", style="dim", markup=False)
        _tell(session)
    elif command == "/boxes" and rest:
        count = session.detect() if rest == _DETECTOR else session.set_boxes(None if rest == _NONE else rest)
        console.print(counted(count, "boxes"), style="dim")
        _tell(session)
    elif command == "/explain" and rest:
        if not session.turns:
            console.print("no answer to explain yet: ask about a picture first", style="dim")
    elif command == "/draw" and rest:
        session.draw(rest)
        console.print(f"saved {rest}", style="dim", markup=False)
    elif command == "/reset":
        session.reset()
        console.print("the conversation and its pictures are forgotten", style="dim")
    else:
        hint = "" if command in _COMMANDS else nearest(command, _COMMANDS)
        console.print(f"{_USAGE}{hint}", style="dim", markup=False)
    return True


def _paths(text: str) -> list[str]:
    """Returns the paths of a command; those with spaces in quotes, or alone."""
    if Path(text).is_file():
        return [text]
    try:
        return shlex.split(text)
    except ValueError:
        # an apostrophe is no open quote
        return text.split()


def _ask_aloud(session: Any, text: str, max_new_tokens: int) -> str:
    """Asks, writes the answer to standard output as it comes, and returns it."""

    def write(piece: str) -> None:
        sys.stdout.write(piece)
        sys.stdout.flush()

    answer = session.ask(text, max_new_tokens, on_text=write)
    sys.stdout.write("\n")
    return answer
