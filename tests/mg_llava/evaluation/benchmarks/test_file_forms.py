"""Benchmark files as editors, spreadsheets and Windows leave them, and cells of a size that nobody meant."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mg_llava.evaluation import ShortAnswer
from mg_llava.evaluation.benchmarks.files import read_json, read_json_lines, read_table
from xtuner.errors import ProblemsError, XTunerError

ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-32"]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
class TestForms:
    def test_tables(self, tmp_path: Path, encoding: str, ending: str) -> None:
        text = 'index\tquestion\tA\n1\t"two\nlines of ""狗"""\tx\n2\tb\ty\n'.replace("\n", ending)
        (tmp_path / "t.tsv").write_bytes(text.encode(encoding))
        rows = [{"index": "1", "question": 'two\nlines of "狗"', "A": "x"}, {"index": "2", "question": "b", "A": "y"}]
        assert read_table(str(tmp_path / "t.tsv")) == rows

    def test_json(self, tmp_path: Path, encoding: str, ending: str) -> None:
        rows = [{"q": "狗\u2028\nx"}, {"q": "b"}]
        (tmp_path / "t.json").write_bytes(json.dumps(rows, indent=1).replace("\n", ending).encode(encoding))
        assert read_json(str(tmp_path / "t.json")) == rows
        text = "".join(f"{json.dumps(row, ensure_ascii=False)}{ending}{ending}" for row in rows)
        (tmp_path / "t.jsonl").write_bytes(text.encode(encoding))
        assert read_json_lines(str(tmp_path / "t.jsonl")) == rows


@pytest.mark.parametrize("name", ["t.tsv", "t.json", "t.jsonl"])
@pytest.mark.parametrize("content", [b"\xff\xfea", '[{"index": "狗"}]'.encode("gb18030")])
def test_what_is_no_text_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    read = {"t.tsv": read_table, "t.json": read_json, "t.jsonl": read_json_lines}[name]
    with pytest.raises(XTunerError, match=name):
        read(str(tmp_path / name))


def test_a_quotation_mark_that_never_ends(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text('index\tquestion\n1\t"open\n2\tb\n')
    with pytest.raises(XTunerError, match="EOF inside string"):
        read_table(str(tmp_path / "t.tsv"))


def test_a_picture_cell_of_many_megabytes_is_read(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text(f"index\timage\n1\t{'A' * 20_000_000}\n2\tB\n")
    assert [len(row["image"]) for row in read_table(str(tmp_path / "t.tsv"))] == [20_000_000, 1]


def test_a_question_longer_than_any_context_is_named(tmp_path: Path) -> None:
    rows = [{"id": "a", "question": "q " * 600_000, "answer": "x"}, {"id": "b", "question": "q", "answer": "x"}]
    (tmp_path / "t.json").write_text(json.dumps(rows))
    with pytest.raises(ProblemsError, match="question a has 1,200,000 characters"):
        ShortAnswer(name="t", data_root=str(tmp_path), data_file="t.json").questions()
