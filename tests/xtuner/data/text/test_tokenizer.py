from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from xtuner.data.text.tokenizer import build_tokenizer
from xtuner.errors import XTunerError

MakeTokenizer = Callable[..., PreTrainedTokenizerFast]


def saved(tokenizer: PreTrainedTokenizerFast, folder: Path) -> str:
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_padding_falls_back_to_unk_then_eos(tmp_path: Path, make_tokenizer: MakeTokenizer) -> None:
    with_unk = saved(make_tokenizer(bos_token="<s>", eos_token="</s>", unk_token="<unk>"), tmp_path / "unk")
    without = saved(make_tokenizer(eos_token="</s>"), tmp_path / "eos")
    own = saved(make_tokenizer(eos_token="</s>", pad_token="<pad>"), tmp_path / "own")
    assert build_tokenizer(with_unk).pad_token == "<unk>"
    assert build_tokenizer(without).pad_token == "</s>"
    assert build_tokenizer(own).pad_token == "<pad>"


def test_what_is_missing_is_said_once(
    tmp_path: Path, make_tokenizer: MakeTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    logger = logging.getLogger("said-once")
    monkeypatch.setattr(logger, "info", said.append)
    monkeypatch.setattr("xtuner.data.text.tokenizer.get_logger", lambda: logger)
    path = saved(make_tokenizer(eos_token="</s>"), tmp_path)
    build_tokenizer(path)
    build_tokenizer(path)
    assert len(said) == 2
    assert "padding with '</s>'" in said[0]
    assert "no bos token" in said[1]


def test_padding_side(tmp_path: Path, make_tokenizer: MakeTokenizer) -> None:
    path = saved(make_tokenizer(eos_token="</s>"), tmp_path)
    assert build_tokenizer(path).padding_side == "right"
    assert build_tokenizer(path, padding_side="left").padding_side == "left"


def test_what_cannot_be_used_is_named(tmp_path: Path, make_tokenizer: MakeTokenizer) -> None:
    with pytest.raises(XTunerError, match="cannot be read.*check llm_name_or_path"):
        build_tokenizer(str(tmp_path))
    with pytest.raises(XTunerError, match="has no eos token"):
        build_tokenizer(saved(make_tokenizer(bos_token="<s>"), tmp_path / "no_eos"))
