"""Conversations of prepared samples, found again in the data files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mg_llava.data.dataset import MGLLaVADataset
from tests.mg_llava.data.test_dataset import talk, world
from xtuner.data.text.templates import Turn

__all__ = ["world"]

RECORDS = [
    {"id": "same", "conversations": talk("What is this", "A dog.")},
    {"id": "silent", "conversations": [{"from": "human", "value": "What"}]},
    {"id": "same", "conversations": talk("What is this dog", "A dog.")},
    {"id": "picture", "image": "a.png", "conversations": talk("<image>\nWhat")},
    {"conversations": talk("is this", "A .")},
]
TURNS = [
    Turn("What is this", "A dog."),
    Turn("What is this dog", "A dog."),
    Turn("<image>\nWhat", "A dog."),
    Turn("is this", "A ."),
]


def test_by_id_and_ids_of_tokens(world: Any) -> None:
    dataset = MGLLaVADataset(**world(RECORDS))
    assert dataset.find_turns(range(4)) == {number: (turn,) for number, turn in enumerate(TURNS)}
    assert dataset.find_turns([1]) == {1: (TURNS[1],)}


def test_every_source_has_its_own_file_and_template(world: Any, tmp_path: Path) -> None:
    node = world(RECORDS)
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps(RECORDS[0]) + "\n")
    sources = [node["data_path"], {"data_path": str(other), "prompt_template": "chatml"}]
    dataset = MGLLaVADataset(**{**node, "data_path": sources, "system_prompt": "is"})
    found = dataset.find_turns([0, 4])
    assert found == {number: (Turn("What is this", "A dog.", "is"),) for number in (0, 4)}


def test_a_file_that_changed_or_is_gone(world: Any, tmp_path: Path) -> None:
    dataset = MGLLaVADataset(**world(RECORDS))
    changed = [{"id": "same", "conversations": talk("What is", "A dog.")}, *RECORDS[1:]]
    (tmp_path / "data.json").write_text(json.dumps(changed))
    assert sorted(dataset.find_turns(range(4))) == [1, 2, 3]
    (tmp_path / "data.json").unlink()
    assert dataset.find_turns(range(4)) == {}
