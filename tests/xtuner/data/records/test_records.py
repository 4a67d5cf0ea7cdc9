from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from xtuner.data.records import json_stream
from xtuner.data.records.records import Record, read_records
from xtuner.errors import XTunerError

VALUES: list[Any] = [{"id": number, "text": 'ä\n]",{' * number} for number in range(50)]


def read(path: Path, text: str) -> tuple[list[Any], list[str]]:
    path.write_text(text, encoding="utf-8")
    items = list(read_records(str(path)))
    values = [item.value for item in items if isinstance(item, Record)]
    return values, [item for item in items if isinstance(item, str)]


class TestGoodFiles:
    @pytest.mark.parametrize("chunk", [1, 7, 64, 1 << 20])
    @pytest.mark.parametrize("indent", [None, 2])
    def test_array_in_chunks_of_any_size(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, indent: int | None
    ) -> None:
        monkeypatch.setattr(json_stream, "_CHUNK", chunk)
        assert read(tmp_path / "a.json", json.dumps(VALUES, indent=indent)) == (VALUES, [])

    def test_jsonl_with_empty_lines(self, tmp_path: Path) -> None:
        text = "\n\n".join(json.dumps(value) for value in VALUES)
        assert read(tmp_path / "a.jsonl", text) == (VALUES, [])

    def test_byte_order_mark_and_empty_array(self, tmp_path: Path) -> None:
        assert read(tmp_path / "a.json", "\ufeff [ ]\n") == ([], [])

    def test_numbers_cut_by_a_chunk(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(json_stream, "_CHUNK", 3)
        assert read(tmp_path / "a.json", "[12345, 678901]") == ([12345, 678901], [])


class TestMalformed:
    @pytest.mark.parametrize(
        ("text", "kept", "message"),
        [
            ('[{"id": 1},\n{"id": 2,}]', 1, "record number 2, line 2, column "),
            ('[{"id": 1}\n{"id": 2}]', 1, "record number 1, line 2, column 1: expected ',' or ']'"),
            ('[{"id": 1},\n', 1, "record number 2, line 2, column 1: Expecting value"),
            ('[{"id": 1}', 1, "'the end of the file'"),
            ('[{"id": 1}]\n]', 1, "found ']' after the end"),
        ],
    )
    def test_array(self, tmp_path: Path, text: str, kept: int, message: str) -> None:
        values, problems = read(tmp_path / "a.json", text)
        assert len(values) == kept
        assert len(problems) == 1
        assert problems[0].startswith("malformed JSON: ")
        assert message in problems[0]

    def test_jsonl_names_each_line(self, tmp_path: Path) -> None:
        values, problems = read(tmp_path / "a.jsonl", '{"a": 1}\n{"a": \n{"a": 3}\nx\n')
        assert values == [{"a": 1}, {"a": 3}]
        assert [problem.split(", column")[0][-6:] for problem in problems] == ["line 2", "line 4"]

    def test_an_object_over_several_lines_is_one_problem(self, tmp_path: Path) -> None:
        assert len(read(tmp_path / "a.json", json.dumps(VALUES[1], indent=2))[1]) == 1


@pytest.mark.parametrize(("content", "message"), [(b"", "is empty"), (b" \n", "is empty"), (b"[\xff]", "not UTF-8")])
def test_unreadable_content(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(XTunerError, match=message):
        list(read_records(str(tmp_path / "a.json")))


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(XTunerError, match="does not exist: set data_path to a LLaVA JSON"):
        list(read_records(str(tmp_path / "no.json")))
    with pytest.raises(XTunerError, match="is a folder"):
        list(read_records(str(tmp_path)))

    def test_an_element_with_a_fault_is_named_and_the_others_are_read(self, tmp_path: Path) -> None:
        deep = "[" * 200 + "]" * 200
        for start, comma, end in ("[", ",\n", "]"), ("", "\n", ""):
            text = start + comma.join(['{"id": 1}', '{"id": 2, "id": 3}', deep, '{"id": 4}']) + end
            values, problems = read(tmp_path / "a.json", text)
            assert values == [{"id": 1}, {"id": 4}]
            assert ["twice" in problems[0], "deep" in problems[1], len(problems)] == [True, True, 2]
            assert ("number 2" if start else "line 2") in problems[0]

    @pytest.mark.parametrize("start", ["[", ""])
    def test_what_cannot_be_read_on_from(self, tmp_path: Path, start: str) -> None:
        for bad, reason in {"9" * 5000: "4,300 digits", "[" * 100_000: "deep"}.items():
            values, problems = read(tmp_path / "a.json", start + '{"id": 1}' + ("," if start else "\n") + bad)
            assert values == [{"id": 1}] and len(problems) == 1 and reason in problems[0]

    def test_other_encodings_are_named_with_their_line(self, tmp_path: Path) -> None:
        (tmp_path / "a.json").write_bytes('[{"id": 1}]'.encode("utf-16"))
        with pytest.raises(XTunerError, match="not UTF-8 text \\(it is UTF-16\\)"):
            list(read_records(str(tmp_path / "a.json")))
        (tmp_path / "a.json").write_bytes(b'{"id": 1}\n{"id": "\xff"}')
        with pytest.raises(XTunerError, match="line 2, byte 9"):
            list(read_records(str(tmp_path / "a.json")))
