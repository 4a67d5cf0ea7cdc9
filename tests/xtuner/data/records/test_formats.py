from __future__ import annotations

from typing import Any

import pytest

from xtuner.data.records.formats import FORMATS
from xtuner.data.text.conversations import RecordError, parse_record


def test_the_examples_say_the_same() -> None:
    talks = [parse_record(one.example, 0) for one in FORMATS]
    assert {one.name for one in FORMATS} == {"llava", "sharegpt", "openai"}
    assert talks[0] == talks[1] == talks[2]
    assert talks[0].images == ("coco/1.jpg",) and talks[0].turns[0].output == "White and red."


def test_openai_with_system_and_plain_text() -> None:
    messages = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
    ]
    (turn,) = parse_record({"messages": messages}, 3).turns
    assert (turn.input, turn.output, turn.system) == ("Hello", "Hi", "Be short.")


@pytest.mark.parametrize(
    ("part", "kind"),
    [
        ({"type": "image_url", "image_url": {"url": "https://x/1.jpg"}}, "bad picture path"),
        ({"type": "image", "image": 3}, "bad picture path"),
        ({"type": "audio"}, "not a text"),
        ("text", "not a text"),
    ],
)
def test_parts_that_cannot_be_read(part: Any, kind: str) -> None:
    record = {"id": "x", "messages": [{"role": "user", "content": [part]}, {"role": "assistant", "content": "A"}]}
    with pytest.raises(RecordError, match=f"^{kind}: record 'x'"):
        parse_record(record, 0)


def test_faults_are_named_as_in_llava() -> None:
    for messages in (None, "x", [3], [{"role": "robot", "content": "x"}], [{"role": "user"}]):
        with pytest.raises(RecordError):
            parse_record({"messages": messages}, 0)
