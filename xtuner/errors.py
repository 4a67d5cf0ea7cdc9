"""Errors meant for the person at the keyboard: what was found, what was expected, what to do."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

_SHORTEST_PART = 4
_ANNOUNCES = re.compile(r"[\s,;]*\b(from |with )?(one of|the following|these)\s*:$")
_SENTENCE_END = re.compile(r"(?<=[\w'\")\]]{2})\. (?=[A-Z])")
_PLURAL = re.compile(r"\b(?:(box)es|(quer|entr)ies|([a-z]{3,})s)\b")


class XTunerError(ValueError):
    """A mistake in what the user gave; the command line prints the message without a traceback and exits 1.

    What the message quotes may be anything; halves of characters, which cannot be printed, stand in it as ``\\ud83d``.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(message.encode("utf-8", "backslashreplace").decode())


class SampleError(XTunerError):
    """A sample that cannot be used, though others can.

    Args:
        kind: of fault, by which they are counted.
        message: what is wrong, and with what.
    """

    def __init__(self, kind: str, message: str) -> None:
        self.kind = kind
        super().__init__(message)

    def __reduce__(self) -> tuple[type[SampleError], tuple[str, str]]:
        return type(self), (self.kind, str(self))


class ProblemsError(XTunerError):
    """All problems of a config or data set at once; a single one stands on the same line.

    Args:
        what: what was looked at, e.g. ``"config phi3_sft.py"``.
        problems: one sentence each.
    """

    def __init__(self, what: str, problems: Sequence[str]) -> None:
        self.what = what
        self.problems = list(problems)
        if len(self.problems) == 1:
            super().__init__(f"{what}: {self.problems[0]}")
            return
        super().__init__(
            "\n".join([f"{len(self.problems):,} problems in {what}:", *map("  - {}".format, self.problems)])
        )

    def __reduce__(self) -> tuple[type[ProblemsError], tuple[str, list[str]]]:
        return type(self), (self.what, self.problems)


def reason_of(error: BaseException) -> str:
    """Returns what a library's error says, to go on in a sentence: its first one, without the full stop.

    Without the words that announce a list on the lines below, either; the error's type where it says nothing.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = _ANNOUNCES.sub("", _SENTENCE_END.split(lines[0])[0]) if lines else ""
    return first.rstrip(" .:") or type(error).__name__


def bytes_text(count: float) -> str:
    """Returns a number of bytes in the unit that shows it: ``1.4 GB``, ``35 MB``, ``820 kB``, ``0 bytes``."""
    for size, unit, digits in ((1e9, "GB", 1), (1e6, "MB", 0), (1e3, "kB", 0)):
        if count >= size:
            return f"{count / size:,.{digits}f} {unit}"
    return counted(int(count), "bytes")


def nearest(name: str, choices: Iterable[str]) -> str:
    """Returns ``" Did you mean 'x'?"`` for the choice most like `name`, else one that contains it, else ``""``."""
    known = list(choices)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if not close and len(name) >= _SHORTEST_PART:
        close = sorted((choice for choice in known if name in choice), key=len)
    return f" Did you mean '{close[0]}'?" if close else ""


def perhaps(name: str, choices: Iterable[str]) -> str:
    """Returns what `nearest` does within a sentence: ``" (did you mean 'x'?)"``."""
    hint = nearest(name, choices)
    return f" (d{hint[2:]})" if hint else ""


def counted(count: int, noun: str) -> str:
    """Returns a number with what it counts: ``3 pictures without boxes``, ``1 picture without boxes``.

    Args:
        count: of things.
        noun: their name in the plural, with words around it; its first plural is the one that one thing changes.
    """
    one = _PLURAL.sub(_singular, noun, count=1) if count == 1 else noun
    return f"{count:,} {one}"


def _singular(found: re.Match[str]) -> str:
    box, other, plain = found.groups()
    return box or plain or f"{other}y"
