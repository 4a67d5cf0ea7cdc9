"""MMMU's open answers: right by its own rule, and where its script slips."""

from __future__ import annotations

import pytest

from mg_llava.evaluation.reading.mmmu import official_letter, official_open_answer_is_right, open_answer_is_right


@pytest.mark.parametrize(
    ("output", "right", "ours", "official"),
    [
        ("The answer is 8.", ["8"], True, True),
        ("8.0", ["8"], True, True),
        ("1,000", ["1000"], True, True),
        ("Therefore the answer is 0.5", ["0.5"], True, True),
        ("The answer is hepatitis", ["hepatitis"], True, True),
        ("3.43", ["24/7", "3.429"], True, True),
        ("2 + 3 = 5", ["5"], True, True),
        ("x = 3, so y = -3", ["3"], False, False),
        ("It is -3", ["3"], False, False),
        ("The area is 12.5 cm^2.", ["12.5"], True, True),
        ("\\boxed{5}", ["5"], True, True),
        ("Vitamin C", ["C"], True, True),
        # where the script slips
        (".5", ["0.5"], True, False),
        (".5", ["5"], False, True),
        ("\u22123", ["-3"], True, False),
        ("\u22123", ["3"], False, True),
        ("unknown", ["no"], False, True),
        ("three", ["3"], True, False),
        ("1/3", ["0.33"], True, False),
        ("The answer is 5, the only one.", ["1"], False, False),
        ("The result is 5. This is because 7 is prime.", ["5"], True, False),
    ],
)
def test_open_answers(output: str, right: list[str], ours: bool, official: bool) -> None:
    assert open_answer_is_right(output, right) is ours
    assert official_open_answer_is_right(output, right) is official


@pytest.mark.parametrize(
    ("output", "letter"),
    [
        ("B", "B"),
        ("(A) or (B)", "B"),
        ("A, B", "B"),
        ("It is a big dog, that I can see", "B"),
        ("cat", None),
        ("", None),
    ],
)
def test_official_letters(output: str, letter: str | None) -> None:
    assert official_letter(output, {"A": "a cat", "B": "a big dog"}) == letter
