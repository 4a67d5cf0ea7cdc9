"""JSON of others: a value, or one kind of error that says where."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xtuner.data.records.json_values import DEPTH, JSONFault, holds_half, parse_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


class TestParsing:
    @given(VALUES)
    def test_what_json_writes_is_read(self, value: Any) -> None:
        assert parse_json(json.dumps(value)) == value
        assert parse_json(b"\xef\xbb\xbf " + json.dumps(value, ensure_ascii=False).encode()) == value

    @given(st.text() | st.binary() | VALUES.map(json.dumps).flatmap(lambda text: st.just(text[: len(text) // 2])))
    def test_anything_else_is_one_kind_of_error(self, text: str | bytes) -> None:
        try:
            parse_json(text)
        except JSONFault as error:
            assert "\n" not in error.reason

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ('{"a": 1, "b": 2, "a": 3}', "the name 'a' stands twice in one object"),
            ('[1, {"a": {"b": 1, "b": 2}}]', "record number 2: the name 'b' stands twice"),
            (nested(DEPTH + 1), f"nested more than {DEPTH} deep"),
            (f"[1, {nested(DEPTH + 2)}]", f"record number 2: nested more than {DEPTH} deep"),
            (nested(100_000), f"nested more than {DEPTH} deep"),
            ('{"a":' * 200 + "1" + "}" * 200, f"nested more than {DEPTH} deep"),
            ("[1,\n" + "9" * 5000 + "]", "line 2, column 1: a number has more than 4,300 digits"),
            (r'["\ud83d"]', "record number 1: a text holds half of a character"),
            ('[{"a": 1},\n{"a": ', "line 2, column 7: Expecting value"),
            ("1 2", "column 3: found '2' after the end"),
            ("", "Expecting value"),
            ("[1]".encode("utf-16"), "it is UTF-16"),
            (b'{"a":\n"\xff"}', "line 2: not UTF-8 text"),
        ],
    )
    def test_faults_name_their_place(self, text: str | bytes, message: str) -> None:
        with pytest.raises(JSONFault) as caught:
            parse_json(text)
        assert message in str(caught.value)

    def test_as_deep_as_is_allowed(self) -> None:
        assert parse_json(nested(DEPTH)) is not None
        # brackets in texts are not nesting
        assert parse_json(json.dumps(["[" * 1000]))[0] == "[" * 1000

    def test_whole_characters(self) -> None:
        assert parse_json(r'["\ud83d\ude00"]') == ["😀"]
        assert holds_half(parse_json(r'["\ud83d"]', whole_characters=False), r'["\ud83d"]')
