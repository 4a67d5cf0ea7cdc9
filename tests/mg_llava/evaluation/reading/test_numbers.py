"""Numbers as people and models write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mg_llava.evaluation.reading.numbers import find_numbers, read_number, same_number


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("-3", -3), ("\u22123", -3), ("\u20133", -3), ("+3", 3), ("minus three", -3), ("negative 5", -5)),
        *(("1,000", 1000), ("1,234,567.5", 1234567.5), ("1,00,000", 100000), ("1\u202f000", 1000), ("1'000", 1000)),
        *((".5", 0.5), ("-.5", -0.5), ("0.5", 0.5), ("5.", 5), ("\uff15", 5), ("5.0", 5)),
        *(("$5", 5), ("-$5", -5), ("$-5", -5), ("US$1,200.50", 1200.5), ("5 €", 5), ("5 dollars", 5), ("€ 5", 5)),
        *(("3/4", 0.75), ("1 1/2", 1.5), ("½", 0.5), ("1½", 1.5), ("\\frac{3}{4}", 0.75), ("-1/2", -0.5)),
        *(("1e5", 1e5), ("1.5E-3", 0.0015), ("1.5×10^3", 1500), ("1.5 \\times 10^{-3}", 0.0015), ("10³", 1000)),
        *(("zero", 0), ("twelve", 12), ("Twenty", 20), ("twenty-one", 21), ("one hundred", 100)),
        *(("5 cm", 5), ("5°C", 5), ("12 people", 12), ("**7**", 7), ("(7)", 7), ("7!", 7)),
    ],
)
def test_whole_texts(text: str, value: float) -> None:
    number = read_number(text)
    assert number is not None and number.value == pytest.approx(value)


@pytest.mark.parametrize(
    "text",
    ["", "x2", "2nd", "1.2.3", "3/4/2020", "3,5", "C3", "2/0", "someone", "five-star", "1e999", "nan", "inf", "3 of 4"],
)
def test_what_is_no_number(text: str) -> None:
    assert read_number(text) is None


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("10-12", [10, 12]),
        ("10\u201312", [10, 12]),
        ("10 - 12 = -2", [10, 12, -2]),
        ("x=-3, y = \u2212 4.", [-3, -4]),
        ("COVID-19", [19]),
        ("From 1,000 to .5% in 2020.", [1000, 0.5, 2020]),
        ("no one", [1]),
    ],
)
def test_numbers_within_texts(text: str, values: list[float]) -> None:
    assert [number.value for number in find_numbers(text)] == values


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        *(
            ("2%", "2", True),
            ("2%", "0.02", True),
            ("2%", "0.2", False),
            ("2%", "2 percent", True),
            ("2%", "200%", False),
        ),
        *(("$5", "5", True), ("$5", "€5", False), ("5 cm", "5 m", False), ("5 years", "5 year", True)),
        *(("5.2 million", "5.2", True), ("5.2 million", "5,200,000", True), ("5.2 million", "5.2 billion", False)),
        *(("one hundred", "1", False), ("12k", "12000", True), ("-3", "3", False), (".5", "5", False)),
    ],
)
def test_the_same(one: str, other: str, same: bool) -> None:
    first, second = read_number(one), read_number(other)
    assert first is not None and second is not None
    assert same_number(first, second) is same and same_number(second, first) is same


@given(st.decimals(-(10**9), 10**9, places=3), st.sampled_from(["-", "\u2212", "\ufe63", "\u2013", "\uff0d"]))
def test_every_way_of_writing_a_decimal(value: object, minus: str) -> None:
    texts = {f"{value}", f"{value:,}", f"${value}", f"{value} km", f"The answer is {value}.", f"({value})"}
    for text in texts:
        found = find_numbers(text.replace("-", minus))
        assert [number.value for number in found] == [pytest.approx(float(str(value)))], text


@given(st.text(max_size=60))
def test_any_text_is_read(text: str) -> None:
    for number in find_numbers(text):
        assert number.value == number.value and number.end > number.start >= 0
