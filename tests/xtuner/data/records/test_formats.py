from __future__ import annotations

from typing import Any

import pytest

from xtuner.data.records.formats import FORMATS
from xtuner.data.text.conversations import RecordError, parse_record
from xtuner.data.text.templates import Place, Turn


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


QUESTION, ANSWER = {"from": "human", "value": "What?"}, {"from": "gpt", "value": "A cup."}


def record(*messages: Any, **fields: Any) -> dict[str, Any]:
    return {"id": "x", "conversations": list(messages or (QUESTION, ANSWER)), **fields}


class TestSaidInOtherWords:
    def test_roles_and_names_of_fields_mix(self) -> None:
        wanted = parse_record(record(), 0)
        for role, name in (("role", "content"), ("from", "content"), ("role", "value")):
            for user, assistant in (("user", "assistant"), ("human", "gpt")):
                messages = [{role: user, name: "What?"}, {role: assistant, name: "A cup."}]
                assert parse_record({"id": "x", "messages": messages}, 0) == wanted
                assert parse_record({"id": "x", "conversations": messages}, 0) == wanted

    def test_system_beside_the_messages(self) -> None:
        wanted = parse_record(record({"from": "system", "value": "Be brief."}, QUESTION, ANSWER), 0).turns
        assert parse_record(record(system="Be brief."), 0).turns == wanted
        assert parse_record(record({"role": "developer", "content": "Be brief."}, QUESTION, ANSWER), 0).turns == wanted
        assert parse_record(record(system=None), 0).turns[0].system == ""

    def test_parts(self) -> None:
        said = {"id": "x", "image": ["a.png", "b.png"]}
        text = [{"from": "human", "value": "Here\n<image>\nand\n<image>\nhere"}, ANSWER]
        parts = [
            {"type": "text", "text": "Here"},
            {"type": "image"},
            {"type": "input_text", "text": "and"},
            {"type": "image_url"},
            {"type": "output_text", "text": "here"},
        ]
        wanted = parse_record({**said, "conversations": text}, 0)
        assert parse_record({**said, "messages": [{"role": "user", "content": parts}, ANSWER]}, 0) == wanted
        named = [*parts]
        named[1], named[3] = {"type": "image", "image": "a.png"}, {"type": "input_image", "image_url": "file://b.png"}
        assert parse_record({"id": "x", "messages": [{"role": "user", "content": named}, ANSWER]}, 0) == wanted

    def test_pictures_only(self) -> None:
        messages = [{"role": "user", "content": [{"type": "image", "image": "a.png"}]}, ANSWER]
        talk = parse_record({"messages": messages}, 0)
        assert (talk.turns[0].input, talk.images) == ("<image>", ("a.png",))
        assert parse_record({"messages": messages[:1]}, 0).turns == ()

    def test_both_lists_of_pictures(self) -> None:
        talk = record({"from": "human", "value": "<image>"}, ANSWER, image="a.png", images=["a.png"])
        assert parse_record(talk, 0).images == ("a.png",)


class TestLoss:
    def test_an_answer_without_loss(self) -> None:
        for said in ({"loss": False}, {"weight": 0}, {"weight": 0.0, "loss": None}):
            turns = parse_record(record(QUESTION, {**ANSWER, **said}, QUESTION, ANSWER), 0).turns
            assert [turn.supervised for turn in turns] == [False, True]
        assert parse_record(record(loss=False), 0).turns[0].supervised is False
        turns = parse_record(record(QUESTION, {**ANSWER, "loss": True}, {**QUESTION, "weight": 0}, ANSWER), 0).turns
        assert all(turn.supervised for turn in turns)

    @pytest.mark.parametrize("said", [{"loss": "no"}, {"loss": 0.5}, {"weight": [0]}, {"loss": True, "weight": 0}])
    def test_of_a_wrong_type(self, said: Any) -> None:
        with pytest.raises(RecordError, match="^bad loss: record 'x'.*message 2"):
            parse_record(record(QUESTION, {**ANSWER, **said}), 0)

    def test_of_a_question(self) -> None:
        with pytest.raises(RecordError, match="bad loss.*only answers can carry it"):
            parse_record(record({**QUESTION, "loss": True}, ANSWER), 0)


class TestNothingIsDroppedInSilence:
    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"video": "clip.mp4"}, "not supported.*'video' = 'clip.mp4'"),
            ({"audios": ["a.wav"]}, "not supported.*'audios'"),
            ({"tools": [{}]}, "not supported.*'tools'"),
            ({"messages": [{}]}, "no messages.*both 'conversations' and 'messages'"),
            ({"system": 3}, "not a text.*'system' is int"),
            ({"image": "a.png", "images": ["b.png"]}, "bad picture path.*'image' and 'images' that differ"),
            ({"image": "a\ud83d.png"}, "half a character.*picture's path holds U\\+D83D"),
            ({"id": "x\ud83d"}, r"half a character: record 'x\\ud83d'"),
        ],
    )
    def test_fields_of_a_record(self, fields: dict[str, Any], message: str) -> None:
        with pytest.raises(RecordError, match=message):
            parse_record(record(**fields), 0)

    @pytest.mark.parametrize(
        ("message", "expected"),
        [
            ({**ANSWER, "tool_calls": [{}]}, "not supported.*message 2 has 'tool_calls'"),
            ({**ANSWER, "reasoning_content": "So"}, "not supported.*'reasoning_content'"),
            ({"from": "gpt", "role": "user", "value": "A"}, "unknown role.*is from 'gpt' and has the role 'user'"),
            ({"from": "tool", "value": "A"}, "unknown role.*is from 'tool', expected one of human, user"),
            ({"from": "gpt", "value": "A", "content": "B"}, "not a text.*both 'value' and 'content'"),
            ({"from": "gpt", "value": "A \ud83d"}, "half a character.*message 2 holds U\\+D83D at character 3"),
            ({"role": "assistant", "content": [{"type": "image", "image": "a.png"}]}, "picture in an answer"),
        ],
    )
    def test_fields_of_a_message(self, message: dict[str, Any], expected: str) -> None:
        with pytest.raises(RecordError, match=expected):
            parse_record(record(QUESTION, message), 0)

    def test_what_is_left_out_is_noted(self) -> None:
        talk = record(ANSWER, QUESTION, {**ANSWER, "score": 3}, QUESTION, source="web", empty="")
        assert parse_record(talk, 0).notes == (
            "a field 'source', which is not read,",
            "a field 'score', which is not read,",
            "an answer before the first question, left out",
            "a last question without an answer, left out",
        )

    def test_fields_of_parts_are_noted(self) -> None:
        address = {"url": "a.png", "detail": "low"}
        parts = [
            {"type": "image_url", "image_url": address, "boxes": [[0, 0, 1, 1]]},
            {"type": "text", "text": "What?"},
        ]
        parts[1]["cache_control"] = {"type": "ephemeral"}
        talk = parse_record({"messages": [{"role": "user", "content": parts}, ANSWER]}, 0)
        assert talk.notes == tuple(
            f"a field {name!r}, which is not read," for name in ("boxes", "cache_control", "detail")
        )


class TestWordsOfPictures:
    def test_text_where_nothing_is_like_a_picture(self) -> None:
        talk = parse_record(record({"from": "human", "value": "What is <image>?"}, ANSWER), 0)
        assert talk.turns[0].parts == ("What is <image>?",) and talk.notes == (
            "<image> without a picture, read as text",
        )

    @pytest.mark.parametrize(
        "fields",
        [
            {"imgae": "a"},
            {"Iamge": "a"},
            {"img": "a"},
            {"pics": 3},
            {"file": "coco/1.JPG"},
            {"files": ["1.webp"]},
            {"id": "1.png"},
            {"image": None},
            {"url": "https://example.org/1.jpg?size=2"},
            {"path": "phone/1.heic"},
            {"source": {"files": [{"name": "1.avif"}]}},
        ],
    )
    def test_not_where_something_is(self, fields: dict[str, Any]) -> None:
        with pytest.raises(RecordError, match="wrong number of pictures.*1 <image> .*lists 0"):
            parse_record(record({"from": "human", "value": "<image>\nWhat?"}, ANSWER, **fields), 0)

    def test_not_where_a_message_has_a_field_like_it(self) -> None:
        for field in ({"img": "a"}, {"file": "1.png"}):
            with pytest.raises(RecordError, match=f"wrong number of pictures.*if '{next(iter(field))}' holds the"):
                parse_record(record({"from": "human", "value": "<image>\nWhat?", **field}, ANSWER), 0)

    def test_in_a_system_prompt(self) -> None:
        asked = {"from": "human", "value": "<image>\nWhich tag?"}
        talk = parse_record(record(asked, ANSWER, image="a.png", system="Mind <image>."), 0)
        assert talk.turns[0].system == "Mind <image>." and talk.turns[0].num_pictures == 1
        assert talk.notes == ("<image> in a system prompt, read as text",)

    def test_in_an_answer(self) -> None:
        asked = {"from": "human", "value": "<image>\nWhich tag?"}
        talk = parse_record(record(asked, {"from": "gpt", "value": "<image>"}, image="a.png"), 0)
        assert talk.turns == (Turn("<image>\nWhich tag?", "<image>"),)
        assert talk.notes == ("<image> in an answer, read as text",)

    def test_beside_image_parts(self) -> None:
        parts = [{"type": "image", "image": "a.png"}, {"type": "text", "text": "Which <image>?"}]
        (turn,) = parse_record({"messages": [{"role": "user", "content": parts}, ANSWER]}, 0).turns
        assert turn.parts == (Place.PICTURE, "\nWhich <image>?") and turn.num_pictures == 1
        notes = parse_record({"messages": [{"role": "user", "content": parts}, ANSWER]}, 0).notes
        assert notes == ("<image> beside pictures that are parts, read as text",)
