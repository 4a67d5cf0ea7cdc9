"""Texts on which two ways of tokenising are compared, and what they say."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass

PROBES = (
    "a two",
    "a  two",
    "a   two",
    "a    two     three      four",
    " one",
    "  one",
    "   one",
    " ",
    "  ",
    "     ",
    "one ",
    "one  ",
    "def f(x):\n    return x\n\n\n        # deep",
    "if (a) {\n\tb = 1;\n\t\tc = 2;\n}",
    "| a  |  b |\n|----|----|\n| 1  | 22 |",
    "\t",
    "\t\tx",
    "x\ty",
    " \t x",
    "\n",
    "\n\n",
    "\n x",
    "x\n  y",
    "a\r\nb",
    "\u00a0x\u00a0\u00a0y",
    "\u3000全角",
    "汉字和English混排",
    "日本語のテキスト、カタカナ。",
    "한국어 텍스트",
    "Привет,  мир!",
    "مرحبا بالعالم",
    "नमस्ते दुनिया",
    "é à ü ß ñ Å",
    "e\u0301 u\u0308",
    "😀",
    "👨‍👩‍👧 family  👍🏽",
    "🇩🇪 flag",
    "\U00010348 \U0001d54f",
    "\u200b\ufeff",
    "0123456789",
    "3.14159 1,000,000 -42",
    "2024-01-31 12:45:00",
    "[0.12, 0.345, 0.6, 0.99]",
    "\u2581",
    "a\u2581b",
    "a \u2581 b",
    "\u2581\u2581x",
    "it's don't we'LL",
    'A "quoted" word, (and) [brackets] {braces} <tags>.',
    "https://example.org/a_b?c=d&e=%20#f",
    "CamelCase snake_case SHOUTING",
    "x=1;y+=2**3//4%5",
    "….—–“”‘’",
    "USER: What is in the picture? ASSISTANT:",
)
"""Runs of spaces, tabs, newlines, CJK, emoji, digits, what needs byte fallback, and ``\\u2581``."""


@dataclass(frozen=True)
class Difference:
    """A text that two ways tokenise differently, and the ids of both."""

    text: str
    ids: list[int]
    other_ids: list[int]


def differences(
    encode: Callable[[str], list[int]], other: Callable[[str], list[int]], without: Iterable[str] = ()
) -> list[Difference]:
    """Compares two ways on `PROBES`.

    Args:
        encode, other: a text to its ids, without special tokens added.
        without: added tokens that only one side knows; a text that holds one is not compared.
    """
    skipped = [token for token in without if token]
    texts = [text for text in PROBES if not any(token in text for token in skipped)]
    return [Difference(text, a, b) for text in texts if (a := encode(text)) != (b := other(text))]


def probe_digest(encode: Callable[[str], list[int]]) -> str:
    """Returns 16 hexadecimal digits that name the ids of all `PROBES`."""
    content = json.dumps([encode(text) for text in PROBES])
    return hashlib.sha256(content.encode()).hexdigest()[:16]
