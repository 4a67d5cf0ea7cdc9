"""JSON of others: a value, or one kind of error that says where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xtuner.errors import XTunerError
from xtuner.json_values import DEPTH, JSONFault, holds_half, parse_json, read_json

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


class TestFiles:
    @pytest.mark.parametrize(
        "content, message",
        [
            (b"", "is not JSON"),
            (b'{"a": 1', "is not JSON: line 1, column"),
            (b"[" * 5000, "nested more than"),
            (b"\xff\xfe{}", "UTF-16"),
            (b"\x80\x81", "not UTF-8"),
            (b"[1]", "holds a list: expected an object"),
            (b"null", "holds null: expected an object"),
            (b"true", "holds true or false: expected an object"),
            (b"9" * 5000, "more than 4,300 digits"),
        ],
    )
    def test_one_sentence_with_the_file_and_the_advice(self, content: bytes, message: str, tmp_path: Path) -> None:
        path = tmp_path / "a.json"
        path.write_bytes(content)
        with pytest.raises(XTunerError, match=f"'{path}' .*{message}.*Make it again") as error:
            read_json(path, dict, "Make it again.")
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("name", ["absent.json", ".", "a\0b"])
    def test_what_is_no_file(self, name: str, tmp_path: Path) -> None:
        with pytest.raises(XTunerError, match="cannot be read"):
            read_json(tmp_path / name)

    def test_with_a_byte_order_mark(self, tmp_path: Path) -> None:
        (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": [1.5]}')
        assert read_json(tmp_path / "a.json", (dict, list)) == {"a": [1.5]}
