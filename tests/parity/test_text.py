"""Ids, labels and padding against what the original implementation recorded (16 records, three settings)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xtuner.constants import IGNORE_INDEX
from xtuner.data.batches.collate import collate
from xtuner.data.records.records import read_records
from xtuner.data.text.conversations import Conversation, iter_conversations
from xtuner.data.text.templates import Turn, get_template
from xtuner.data.text.tokenizer import build_tokenizer
from xtuner.data.text.tokenizing import encode_conversation, encode_conversations, encode_prompt

GOLDEN = Path(__file__).parent / "data" / "d_dataset"
SETTINGS = ("vicuna_1472", "vicuna_100", "phi3_chat_1472")


def read_golden(setting: str) -> dict[str, Any]:
    return json.loads((GOLDEN / f"text_{setting}.json").read_text())


def conversations() -> list[Conversation]:
    problems: list[str] = []
    parsed = list(iter_conversations(read_records(str(GOLDEN / "data.json")), problems))
    assert not problems
    return parsed


def test_the_record_without_an_answer_is_dropped() -> None:
    assert [conversation.id for conversation in conversations() if not conversation.turns] == ["no_gpt"]


@pytest.mark.parametrize("setting", SETTINGS)
def test_ids_and_labels_are_equal_token_for_token(setting: str) -> None:
    golden = read_golden(setting)
    tokenizer = build_tokenizer(str(GOLDEN / f"tok_{golden['template']}"))
    template = get_template(golden["template"])
    answered = [conversation for conversation in conversations() if conversation.turns]
    encoded = encode_conversations(answered, tokenizer, template, golden["max_length"])
    assert [conversation.id for conversation in answered] == [str(sample["id"]) for sample in golden["samples"]]
    for conversation, ours, theirs in zip(answered, encoded, golden["samples"], strict=True):
        assert ours.input_ids == theirs["input_ids"], conversation.id
        assert ours.labels == theirs["labels"], conversation.id
        assert encode_conversation(conversation, tokenizer, template, golden["max_length"]) == ours


def test_what_max_length_cut_off_is_counted() -> None:
    tokenizer = build_tokenizer(str(GOLDEN / "tok_vicuna"))
    long = next(conversation for conversation in conversations() if conversation.id == "long")
    whole = encode_conversation(long, tokenizer, get_template("vicuna"), 1472)
    cut = encode_conversation(long, tokenizer, get_template("vicuna"), 100)
    assert (whole.num_truncated, len(cut.input_ids)) == (0, 100)
    assert cut.num_truncated == len(whole.input_ids) - 100
    assert cut.num_truncated_labels == whole.num_supervised - cut.num_supervised


@pytest.mark.parametrize("setting", ["vicuna_1472", "phi3_chat_1472"])
def test_a_prompt_is_the_beginning_of_the_trained_ids(setting: str) -> None:
    golden = read_golden(setting)
    tokenizer = build_tokenizer(str(GOLDEN / f"tok_{golden['template']}"))
    by_id = {str(sample["id"]): sample for sample in golden["samples"]}
    for conversation in conversations():
        for last, turn in enumerate(conversation.turns):
            turns = [*conversation.turns[:last], Turn(turn.input, system=turn.system)]
            ids = encode_prompt(turns, tokenizer, get_template(golden["template"]))
            sample = by_id[conversation.id]
            assert sample["input_ids"][: len(ids)] == ids
            assert sample["labels"][len(ids) - 1] == IGNORE_INDEX != sample["labels"][len(ids)]


def test_collate_pads_alike() -> None:
    golden = np.load(GOLDEN / "text_collate_vicuna.npz")
    samples = read_golden("vicuna_1472")["samples"]
    by_id = {sample["id"]: {**sample, "sample_id": sample["id"]} for sample in samples}
    picked = [by_id[name] for name in ("single", "text_only", "multi", "image_end")]
    batch = collate(picked, pad_id=0)
    assert np.array_equal(batch["input_ids"], golden["input_ids"])
    assert np.array_equal(batch["labels"], golden["labels"])
    assert batch["attention_mask"].sum(1).tolist() == golden["lengths"].tolist()
    assert batch["sample_ids"] == ["single", "text_only", "multi", "image_end"]
