"""A tokenizer of single bytes: no files, no network, every id is readable."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


def _tiny_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    """Bytes plus the special tokens given by role, e.g. ``eos_token="</s>"``."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


@pytest.fixture()
def tokenizer() -> PreTrainedTokenizerFast:
    return _tiny_tokenizer(bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<unk>")


@pytest.fixture()
def write_records(tmp_path: Path) -> Callable[..., str]:
    """Writes records as data.json and returns the path."""

    def write(records: list[Any], name: str = "data.json") -> str:
        path = tmp_path / name
        path.write_text(json.dumps(records))
        return str(path)

    return write


def _record(number: int = 0, **changes: Any) -> dict[str, Any]:
    """A good record with one picture."""
    return {
        "id": f"r{number}",
        "image": f"{number}.png",
        "conversations": [
            {"from": "human", "value": f"<image>\nWhat is number {number}?"},
            {"from": "gpt", "value": "A dog." * (number % 7)},
        ],
        **changes,
    }


@pytest.fixture()
def make_record() -> Callable[..., dict[str, Any]]:
    return _record


@pytest.fixture()
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    return _tiny_tokenizer
