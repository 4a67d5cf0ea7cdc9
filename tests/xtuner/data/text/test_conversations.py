from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from xtuner.data.records.records import read_records
from xtuner.data.text.conversations import RecordError, iter_conversations, parse_record
from xtuner.data.text.templates import Turn


def talk(*messages: tuple[str, Any], image: Any = None, **more: Any) -> dict[str, Any]:
    return {
        "id": "a",
        "image": image,
        "conversations": [{"from": who, "value": what} for who, what in messages],
        **more,
    }


class TestTurns:
    def test_leading_answers_and_trailing_questions_are_dropped(self) -> None:
        record = talk(("gpt", "Hello."), ("human", "Q"), ("gpt", "A"), ("human", "And?"))
        assert parse_record(record, 0).turns == (Turn("Q", "A"),)

    def test_questions_in_a_row_are_joined(self) -> None:
        assert parse_record(talk(("human", "One. "), ("human", "Two."), ("gpt", "A")), 0).turns[0].input == "One. Two."

    def test_an_answer_after_an_answer_has_an_empty_question(self) -> None:
        turns = parse_record(talk(("human", "Q"), ("gpt", "A"), ("gpt", "B")), 0).turns
        assert turns == (Turn("Q", "A"), Turn("", "B"))

    def test_system_prompt_goes_with_the_next_turn(self) -> None:
        turns = parse_record(talk(("system", "S"), ("human", "Q"), ("gpt", "A"), ("human", "R"), ("gpt", "B")), 0).turns
        assert turns == (Turn("Q", "A", "S"), Turn("R", "B"))

    def test_nobody_answers(self) -> None:
        assert parse_record(talk(("human", "<image>\nQ"), image="x.png"), 0).turns == ()

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("Look <image> here", "<image>\nLook  here"),
            ("What?\n<image>", "<image>\nWhat?"),
            ("  <image>   What?  ", "<image>\nWhat?"),
            ("<image>", "<image>"),
        ],
    )
    def test_one_picture_comes_first(self, text: str, expected: str) -> None:
        assert parse_record(talk(("human", text), ("gpt", "A"), image="x.png"), 0).turns[0].input == expected

    def test_several_pictures_stay_where_the_text_refers_to_them(self) -> None:
        conversation = parse_record(talk(("human", "A: <image> B: <image>"), ("gpt", "A"), image=["x", "y"]), 0)
        assert conversation.turns[0].input == "A: <image> B: <image>"
        assert conversation.images == ("x", "y")

    def test_text_without_picture_is_left_alone(self) -> None:
        assert parse_record(talk(("human", " Q "), ("gpt", " A ")), 0).turns == (Turn(" Q ", " A "),)

    @pytest.mark.parametrize(("given", "expected"), [(12, "12"), ("x", "x"), (None, "#6"), (0, "0")])
    def test_ids(self, given: Any, expected: str) -> None:
        assert parse_record(talk(("human", "Q"), ("gpt", "A"), id=given), 5).id == expected


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            talk(("human", "<image> <image>"), ("gpt", "A"), image="x"),
            "pictures: record 'a'.*2 <image>.*'image' lists 1",
        ),
        (talk(("human", "Q"), ("gpt", "A"), image="x"), "0 <image> in .* but 'image' lists 1"),
        (talk(("human", "<image>"), ("gpt", "A")), "1 <image> in .* but 'image' lists 0"),
        (
            talk(("human", "Q"), ("robot", "A")),
            "unknown role: record 'a'.*message 2 is from 'robot', expected one of",
        ),
        (talk(("gpt", "A")), "no human turn: record 'a'"),
        (talk(("human", 3), ("gpt", "A")), "not a text: record 'a'.*message 1.*int"),
        (talk(("human", "Q"), ("gpt", "A"), image=3), "bad picture path: record 'a'"),
        (talk(("human", "Q"), ("gpt", "A"), image=""), "bad picture path: record 'a'"),
        ({"id": "a"}, "no messages: record 'a'.*no 'conversations'"),
        ({"id": "a", "conversations": []}, "no messages: record 'a'"),
        ({"id": "a", "conversations": ["x"]}, "unknown role: record 'a'"),
        (["x"], "not a record: record number 8: expected an object, found list"),
    ],
)
def test_every_fault_is_named_with_its_record(record: Any, message: str) -> None:
    with pytest.raises(RecordError, match=message):
        parse_record(record, 7)


def test_all_faults_of_a_file_are_collected(tmp_path: Path, write_records: Callable[..., str]) -> None:
    good = talk(("human", "Q"), ("gpt", "A"))
    problems: list[str] = []
    path = write_records([good, talk(("gpt", "A")), good, 3, talk(("human", "Q"), ("x", "A"))])
    assert [conversation.index for conversation in iter_conversations(read_records(path), problems)] == [0, 2]
    assert [problem.split(":")[0] for problem in problems] == [
        "no human turn",
        "not a record",
        "unknown role",
    ]
