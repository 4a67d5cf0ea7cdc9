"""``xtuner chat FOLDER``: questions about pictures in the terminal."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from xtuner.constants import HOTTEST
from xtuner.errors import XTunerError
from xtuner.log import console
from xtuner.tools.support.arguments import add_answering_model
from xtuner.tools.support.conversation import DETECTOR, NO_BOXES, USAGE, Conversation, ask_aloud, explain, tell, told


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``xtuner chat``."""
    parser.description = "Ask a model about pictures. With --prompt you get one answer, without it a conversation."
    parser.epilog = f"In a conversation: {USAGE}"
    add_answering_model(parser)
    parser.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="FILE",
        help="picture to ask about; repeat the option for several",
    )
    parser.add_argument(
        "--video",
        action="append",
        default=[],
        metavar="FILE",
        help="video to ask about, behind the pictures; FILE#t=3,12 is a part of it, in seconds",
    )
    parser.add_argument(
        "--frames", type=int, metavar="N", help="frames of a video that are shown, spread evenly (default: 8)"
    )
    parser.add_argument(
        "--boxes",
        default=NO_BOXES,
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
        help="with --prompt: save the last --image, or the frames of the last --video, with each box (and frame) "
        "coloured by its influence on the answer",
    )
    parser.add_argument("--prompt", metavar="TEXT", help="ask this question, print the answer and exit")
    parser.add_argument(
        "--json", action="store_true", help="with --prompt: print the question, answer and boxes as JSON"
    )
    parser.add_argument(
        "--draw", metavar="FILE", help="save the last --image, or the frames of the last --video, with boxes drawn"
    )
    parser.add_argument("--load", metavar="FILE", help="go on with a conversation that /save, --save or the page saved")
    parser.add_argument("--save", metavar="FILE", help="with --prompt: save the conversation, pictures included")
    _add_sampling(parser)


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    """How answers are drawn, and how long they may be."""
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        default=512,
        metavar="N",
        help="largest number of tokens in an answer (default: 512)",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        metavar="T",
        help="0 takes the likeliest words each time, up to 2 makes answers vary (default: 0)",
    )
    parser.add_argument("--seed", type=int, help="with --temperature: same seed, same answers (default: a new one)")


def run(args: argparse.Namespace) -> int:
    """Answers; returns the exit code."""
    _check(args)
    from xtuner.tools.support.answering import load_assistant, load_detector
    from xtuner.tools.support.families import family_of_object

    assistant = load_assistant(args)
    detector = load_detector(args) if args.boxes == DETECTOR else None
    session = family_of_object(assistant).ChatSession(assistant, detector)
    session.set_temperature(args.temperature, args.seed)
    if args.load:
        session.load(args.load)
        told(session, args.load)
    box_file = None if args.boxes in (NO_BOXES, DETECTOR) else args.boxes
    for path in args.image:
        session.add_picture(path, box_file)
        tell(session)
    for path in args.video:
        session.add_video(path, args.frames)
        tell(session)
    if args.draw:
        session.draw(args.draw)
    if args.prompt is None:
        return Conversation(session, args.max_new_tokens, box_file, args.frames).run()
    _answer(session, args)
    return 0


def _answer(session: Any, args: argparse.Namespace) -> None:
    """One question: as text while it comes, or as JSON."""
    turns = session.turns
    if args.json:
        answer = session.ask(args.prompt, args.max_new_tokens)
        row = {"prompt": args.prompt, "answer": answer, "finish_reason": session.finish_reason, **session.describe()}
    else:
        answer, row = ask_aloud(session.ask, args.prompt, args.max_new_tokens), None
        if session.finish_reason == "length":
            console.print("the answer was cut: --max-new-tokens allows a longer one", style="yellow")
    if args.explain:
        weights = explain(session, args.explain, args.prompt, answer, turns)
        if row is not None:
            row["weights"] = weights
    if args.save:
        session.save(args.save)
    if row is not None:
        sys.stdout.write(json.dumps(row, ensure_ascii=False) + "\n")


def _check(args: argparse.Namespace) -> None:
    """Finds what is wrong before minutes go into loading a model."""
    for path in (*args.image, *([] if args.boxes in (NO_BOXES, DETECTOR) else [args.boxes])):
        if not Path(path).is_file():
            raise XTunerError(f"'{path}' does not exist: check --image and --boxes.")
    _check_videos(args)
    if args.json and args.prompt is None:
        raise XTunerError("--json prints the answer to --prompt: add --prompt.")
    if args.explain and (args.prompt is None or not (args.image or args.video)):
        raise XTunerError(
            "--explain colours the boxes of a picture or video for the answer to --prompt: add --prompt and --image or "
            "--video."
        )
    if args.draw and not (args.image or args.video):
        raise XTunerError("--draw saves a picture with its boxes: add --image or --video.")
    if args.load and not Path(args.load).is_file():
        raise XTunerError(f"'{args.load}' does not exist: check --load.")
    if args.save and args.prompt is None:
        raise XTunerError("--save keeps the answer to --prompt: add --prompt, or type /save FILE in a conversation.")
    if not 0 <= args.temperature <= HOTTEST:
        raise XTunerError(f"--temperature is {args.temperature}: expected a number from 0 to {HOTTEST}.")
    if args.seed is not None and not 0 <= args.seed < 2**63:
        raise XTunerError(f"--seed is {args.seed}: expected a whole number from 0 to 2**63 - 1.")
    if args.max_new_tokens < 1:
        raise XTunerError(f"--max-new-tokens is {args.max_new_tokens}: expected at least 1.")


def _check_videos(args: argparse.Namespace) -> None:
    for path in args.video:
        if not Path(path.partition("#t=")[0]).exists():
            raise XTunerError(f"'{path}' does not exist: check --video.")
    if args.frames is not None and args.frames < 1:
        raise XTunerError(f"--frames is {args.frames}: expected at least 1.")
