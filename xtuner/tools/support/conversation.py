"""A conversation in the terminal: lines that are questions or commands."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from xtuner.errors import XTunerError, counted, nearest
from xtuner.log import console

NO_BOXES, DETECTOR = "none", "detector"
USAGE = (
    "/image PATH [BOX_FILE] adds a picture, /video PATH the frames of a video, /boxes none|detector|BOX_FILE replaces "
    "the boxes of the last picture, /draw PATH saves it (or the frames of the last video) with its boxes, /explain "
    "PATH colours each box and frame by its influence on the last answer, /again asks the last question again, /edit "
    "[NUMBER] TEXT asks TEXT instead of the last question (or of that number) and forgets what came after it, "
    "/temperature NUMBER makes answers vary (0: the likeliest words), /tokens NUMBER sets the longest answer, /save "
    "FILE and /load FILE keep a conversation, /reset forgets everything, /exit ends the conversation. Any other text "
    "is a question."
)


class Conversation:
    """Questions and commands to a session, with what they print.

    Args:
        session: a `ChatSession` of a model family.
        max_new_tokens: of an answer.
        box_file: of pictures that are added without one; None = none.
        num_frames: of a video; None = as the session has it.
    """

    def __init__(
        self, session: Any, max_new_tokens: int, box_file: str | None = None, num_frames: int | None = None
    ) -> None:
        self.session = session
        self.max_new_tokens = max_new_tokens
        self.box_file = box_file
        self.num_frames = num_frames
        self._last: tuple[str, str, Any] | None = None
        self._commands: dict[str, Callable[[str], None]] = {
            "/image": self._image,
            "/video": self._video,
            "/boxes": self._boxes,
            "/draw": self._draw,
            "/explain": self._explain,
            "/again": self._again,
            "/edit": self._edit,
            "/temperature": self._temperature,
            "/tokens": self._tokens,
            "/save": self._save,
            "/load": self._load,
            "/reset": self._reset,
        }

    def run(self) -> int:
        """Reads line by line until /exit, the end of the input, or Ctrl-C twice; returns the exit code."""
        console.print(USAGE, style="dim", markup=False)
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
            if line == "/exit":
                return 0
            try:
                self._obey(line)
            except XTunerError as error:
                console.print(str(error), style="red", markup=False)
            except KeyboardInterrupt:
                console.print(
                    "\ninterrupted: the model forgets this question and keeps the earlier ones", style="yellow"
                )

    def _obey(self, line: str) -> None:
        command, _, rest = line.partition(" ")
        if not command.startswith("/"):
            if line:
                self._ask(line)
            return
        wanted = self._commands.get(command)
        rest = rest.strip()
        if wanted is None or not (rest or command in ("/again", "/reset")):
            known = (*self._commands, "/help", "/exit")
            hint = "" if command in known else nearest(command, known)
            console.print(f"{USAGE}{hint}", style="dim", markup=False)
        else:
            wanted(rest)

    def _ask(self, text: str) -> None:
        before = self.session.turns
        answer = ask_aloud(self.session.ask, text, max_new_tokens=self.max_new_tokens)
        self._answered(text, answer, before)

    def _answered(self, text: str, answer: str, before: Any) -> None:
        self._last = (text, answer, before)
        if self.session.finish_reason == "length":
            console.print("the answer was cut: /tokens NUMBER allows a longer one, /again asks again", style="yellow")

    def _again(self, _: str) -> None:
        self._ask_again(len(self.session.turns) - 1, None)

    def _edit(self, rest: str) -> None:
        number, _, text = rest.partition(" ")
        if number.isdecimal() and text.strip():
            self._ask_again(int(number) - 1, text.strip())
        else:
            self._ask_again(len(self.session.turns) - 1, rest)

    def _ask_again(self, number: int, text: str | None) -> None:
        if not 0 <= number < len(self.session.turns):
            raise XTunerError(
                f"the conversation has {counted(len(self.session.turns), 'answered questions')}: give the number of "
                "one of them, or ask one first."
            )
        answer = ask_aloud(self.session.ask_again, number, text, max_new_tokens=self.max_new_tokens)
        *before, turn = self.session.turns
        said = "".join(part for part in turn.parts if isinstance(part, str)).strip()
        self._answered(said, answer, tuple(before))

    def _image(self, rest: str) -> None:
        words = _paths(rest)
        count = self.session.add_picture(words[0], words[1] if len(words) > 1 else self.box_file)
        console.print(f"{words[0]}: added with {counted(count, 'boxes')}", style="dim", markup=False)
        tell(self.session)
        self._last = None

    def _video(self, rest: str) -> None:
        count = self.session.add_video(rest, self.num_frames)
        console.print(f"{rest}: added with {counted(count, 'frames')}", style="dim", markup=False)
        tell(self.session)
        self._last = None

    def _boxes(self, rest: str) -> None:
        if rest == DETECTOR:
            count = self.session.detect()
        else:
            count = self.session.set_boxes(None if rest == NO_BOXES else rest)
        console.print(counted(count, "boxes"), style="dim")
        tell(self.session)

    def _explain(self, rest: str) -> None:
        if self._last is None:
            console.print("no answer to explain yet: ask about a picture first", style="dim")
        else:
            explain(self.session, rest, *self._last)

    def _draw(self, rest: str) -> None:
        self.session.draw(rest)
        console.print(f"saved {rest}", style="dim", markup=False)

    def _temperature(self, rest: str) -> None:
        try:
            temperature = float(rest)
        except ValueError:
            raise XTunerError(f"'{rest[:40]}' is no temperature: give a number from 0 to 2, e.g. 0.7.") from None
        self.session.set_temperature(temperature)
        console.print(f"temperature {rest}", style="dim", markup=False)

    def _tokens(self, rest: str) -> None:
        if not rest.isdecimal() or len(rest) > 9 or int(rest) < 1:
            raise XTunerError(f"'{rest[:40]}' is no number of tokens: give a whole number from 1, e.g. 512.")
        self.max_new_tokens = int(rest)
        console.print(f"answers have at most {counted(self.max_new_tokens, 'tokens')}", style="dim")

    def _save(self, rest: str) -> None:
        self.session.save(rest)
        console.print(f"saved {rest}", style="dim", markup=False)

    def _load(self, rest: str) -> None:
        self.session.load(rest)
        self._last = None
        told(self.session, rest)

    def _reset(self, _: str) -> None:
        self.session.reset()
        self._last = None
        console.print("the conversation and its pictures are forgotten", style="dim")


def told(session: Any, path: str) -> None:
    """Prints what was loaded."""
    questions, pictures = len(session.turns), len(session.describe()["images"])
    console.print(
        f"{path}: {counted(questions, 'questions')} and {counted(pictures, 'pictures')} loaded",
        style="dim",
        markup=False,
    )
    tell(session)


def tell(session: Any) -> None:
    """Prints what the user should know of the last picture."""
    for note in session.notes:
        console.print(note, style="yellow", markup=False)


def explain(session: Any, path: str, question: str, answer: str, before: Any) -> list[dict[str, Any]]:
    """Saves the last picture, or the frames of the last video, with boxes coloured, lists them, and returns a row of
    each.
    """
    influence = session.explain(question, answer, before)
    session.draw(path, influence)
    rows: list[dict[str, Any]] = session.tell_influence(influence)
    for row in sorted(rows, key=lambda row: -abs(row["weight"])):
        words = ", ".join(str(row[key]) for key in ("label", "frame") if key in row)
        console.print(f"{row['weight']:+8.3f}  {words}", style="dim", markup=False)
    return rows


def ask_aloud(ask: Callable[..., str], *values: Any, **named: Any) -> str:
    """Asks, writes the answer to standard output as it comes, and returns it."""

    def write(piece: str) -> None:
        sys.stdout.write(piece)
        sys.stdout.flush()

    answer = ask(*values, **named, on_text=write)
    sys.stdout.write("\n")
    return answer


def _paths(text: str) -> list[str]:
    """Returns the paths of a command; those with spaces in quotes, or alone."""
    if Path(text).is_file():
        return [text]
    try:
        return shlex.split(text) or [text]
    except ValueError:
        # an apostrophe is no open quote
        return text.split()
