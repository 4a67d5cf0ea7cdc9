"""Numbers with what they count, sizes in their unit, reasons of libraries in a sentence."""

from __future__ import annotations

import pytest

from xtuner.errors import ProblemsError, bytes_text, counted, perhaps, reason_of


@pytest.mark.parametrize(
    ("count", "noun", "told"),
    [
        (0, "pictures", "0 pictures"),
        (1, "pictures without boxes", "1 picture without boxes"),
        (1, "inverted boxes left out", "1 inverted box left out"),
        (1, "entries", "1 entry"),
        (1, "cut off: samples", "1 cut off: sample"),
        (1, "kept", "1 kept"),
        (12345, "steps", "12,345 steps"),
    ],
)
def test_counted(count: int, noun: str, told: str) -> None:
    assert counted(count, noun) == told


@pytest.mark.parametrize(
    ("count", "told"),
    [(0, "0 bytes"), (1, "1 byte"), (1000, "1 kB"), (35_400_000, "35 MB"), (1.44e9, "1.4 GB"), (2e12, "2,000.0 GB")],
)
def test_bytes(count: float, told: str) -> None:
    assert bytes_text(count) == told


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            "Couldn't instantiate the tokenizer from one of: \n(1) a file\n(2) another",
            "Couldn't instantiate the tokenizer",
        ),
        ("We couldn't connect to the hub.\nCheck your connection.", "We couldn't connect to the hub"),
        ("Can't load 'x'. If you were trying to, do not.", "Can't load 'x'"),
        ("expected e.g. A or v1.5 of it", "expected e.g. A or v1.5 of it"),
        ("\n  no such file.  \n", "no such file"),
        ("", "ValueError"),
    ],
)
def test_reason_of(said: str, reason: str) -> None:
    assert reason_of(ValueError(said)) == reason


def test_one_problem_stands_on_one_line() -> None:
    assert str(ProblemsError("config a.py", ["no lr."])) == "config a.py: no lr."
    assert str(ProblemsError("config a.py", ["no lr.", "no data."])) == (
        "2 problems in config a.py:\n  - no lr.\n  - no data."
    )


def test_a_near_name_within_a_sentence() -> None:
    assert perhaps("vicunna", ["vicuna", "phi3"]) == " (did you mean 'vicuna'?)"
    assert perhaps("xyz", ["vicuna", "phi3"]) == ""
