"""Tokenizers give the ids of the files that they come from."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from tests.tiny_tokenizers import llama_folder, random_texts, sentencepiece_file
from xtuner.data.store.fingerprint import text_settings
from xtuner.data.text.templates import get_template
from xtuner.data.text.tokenizer import build_tokenizer
from xtuner.data.text.tokenizer_files import PROBES, backend_ids, differences, probe_digest
from xtuner.errors import XTunerError


def processor(folder: Path) -> SentencePieceProcessor:
    return SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


def write_json(folder: Path, **changes: object) -> None:
    """Adds a tokenizer.json, made of tokenizer.model, with other entries in its model where `changes` says so."""
    content = json.loads(build_tokenizer(str(folder)).backend_tokenizer.to_str())
    content["model"] |= changes
    (folder / "tokenizer.json").write_text(json.dumps(content))


class TestSentencepiece:
    @pytest.mark.parametrize("legacy", [False, True, None])
    @pytest.mark.parametrize("dummy_prefix", [True, False])
    def test_ids_are_sentencepieces_before_and_after_export(
        self, tmp_path: Path, legacy: bool | None, dummy_prefix: bool
    ) -> None:
        folder = llama_folder(tmp_path / "llm", add_dummy_prefix=dummy_prefix, legacy=legacy)
        built = build_tokenizer(str(folder))
        built.save_pretrained(tmp_path / "out")
        texts = [text for text in random_texts(3000, seed=1) if text]
        assert sum("  " in text for text in texts) > 1000
        wanted = [processor(folder).encode(text) for text in texts]
        for tokenizer in (
            built,
            build_tokenizer(str(tmp_path / "out")),
            AutoTokenizer.from_pretrained(tmp_path / "out"),
        ):
            assert [backend_ids(tokenizer)(text) for text in texts] == wanted
        assert (built.bos_token, built.eos_token, built("a").input_ids[0]) == ("<s>", "</s>", 1)
        assert built.decode(wanted[0]) == processor(folder).decode(wanted[0])

    @pytest.mark.parametrize("legacy", [False, True])
    def test_symbols_of_the_file(self, tmp_path: Path, legacy: bool) -> None:
        """As in Mistral's files: pieces that are never cut."""
        folder = llama_folder(tmp_path, symbols=("[REF]", "[/REF]"), legacy=legacy)
        encode = backend_ids(build_tokenizer(str(folder)))
        texts = [text for text in random_texts(1000, seed=3, extra=("[REF]", "[/REF]")) if text]
        assert [encode(text) for text in texts] == [processor(folder).encode(text) for text in texts]

    def test_a_unigram_file_whose_ties_are_broken_another_way_is_refused(self, tmp_path: Path) -> None:
        """Seven spaces are 4 + 3 or 3 + 4 at the same likelihood: sentencepiece takes the one, tokenizers the other."""
        folder = llama_folder(tmp_path, model_type="unigram", tokenizer_class="PreTrainedTokenizerFast")
        with pytest.raises(XTunerError, match=r"of \d+ probe texts get other ids than from sentencepiece"):
            build_tokenizer(str(folder))

    def test_what_cannot_be_reproduced_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = llama_folder(tmp_path)
        # as a version of transformers that forgets the prefix
        monkeypatch.setattr("xtuner.data.text.tokenizer_files._prefix_always", lambda tokenizer: None)
        with pytest.raises(XTunerError, match=r"of \d+ probe texts.*' one': \[.*instead of \[.*add the model's"):
            build_tokenizer(str(folder))

    def test_special_tokens_and_chat_template_are_kept(self, tmp_path: Path) -> None:
        added = {"430": {"content": "<|im_start|>", "special": True, "normalized": False}}
        folder = llama_folder(tmp_path, added_tokens_decoder=added, chat_template="{{ messages[0].content }}")
        built = build_tokenizer(str(folder))
        assert built.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False) == "x"
        assert backend_ids(built)("<|im_start|>") == [430]
        # with legacy=False no space of its own after a special token
        assert built.tokenize("<|im_start|>two")[1][0] == "t" and built.tokenize("two")[0][0] == "\u2581"
        old = build_tokenizer(str(llama_folder(tmp_path / "old", added_tokens_decoder=added, legacy=True)))
        assert old.tokenize("<|im_start|>two")[1][0] == "\u2581"
        assert built.name_or_path == str(folder)


class TestBothFiles:
    def test_agreeing_files_say_nothing(self, tmp_path: Path, framework_log: list[logging.LogRecord]) -> None:
        write_json(llama_folder(tmp_path))
        build_tokenizer(str(tmp_path))
        assert not [entry for entry in framework_log if "has two files" in entry.getMessage()]

    def test_disagreeing_files(self, tmp_path: Path, framework_log: list[logging.LogRecord]) -> None:
        folder = llama_folder(tmp_path)
        merges = json.loads(build_tokenizer(str(folder)).backend_tokenizer.to_str())["model"]["merges"]
        write_json(folder, merges=merges[::-1])
        by_json = Tokenizer.from_file(str(folder / "tokenizer.json"))
        built = build_tokenizer(str(folder))
        (warning,) = [entry.getMessage() for entry in framework_log if "has two files" in entry.getMessage()]
        assert "tokenizer_source='tokenizer.model'" in warning and "instead of [" in warning
        assert backend_ids(built)("two  three") == by_json.encode("two  three", add_special_tokens=False).ids
        by_model = build_tokenizer(str(folder), source="tokenizer.model")
        assert not differences(backend_ids(by_model), processor(folder).encode)

    def test_a_class_that_rebuilds_the_file_is_not_believed(self, tmp_path: Path) -> None:
        """Llama's class puts no space before a text that begins with one; the file of Llama 2 and Phi-3 does."""
        folder = llama_folder(tmp_path, legacy=True)
        write_json(folder)
        assert differences(backend_ids(AutoTokenizer.from_pretrained(folder)), processor(folder).encode)
        assert not differences(backend_ids(build_tokenizer(str(folder))), processor(folder).encode)


class TestMissing:
    def test_neither_file(self, tmp_path: Path) -> None:
        llama_folder(tmp_path)
        (tmp_path / "tokenizer.model").unlink()
        with pytest.raises(XTunerError, match="cannot be read"):
            build_tokenizer(str(tmp_path))

    @pytest.mark.parametrize("source", ["tokenizer.json", "tokenizer.modell"])
    def test_source_that_is_not_there(self, tmp_path: Path, source: str) -> None:
        llama_folder(tmp_path)
        with pytest.raises(XTunerError, match="tokenizer_source"):
            build_tokenizer(str(tmp_path), source=source)  # type: ignore[arg-type]

    @pytest.mark.parametrize("kept", [0, 3000])
    def test_a_download_that_stopped(self, tmp_path: Path, kept: int) -> None:
        file = llama_folder(tmp_path) / "tokenizer.model"
        file.write_bytes(file.read_bytes()[:kept])
        with pytest.raises(XTunerError, match=rf"tokenizer.model \({kept:,} bytes\) is neither.*download it again"):
            build_tokenizer(str(tmp_path))

    def test_a_file_of_another_kind_is_no_sentencepiece(self, tmp_path: Path) -> None:
        write_json(llama_folder(tmp_path))
        (tmp_path / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")
        assert build_tokenizer(str(tmp_path)).eos_token == "</s>"
        with pytest.raises(XTunerError, match=r"no tokenizer\.model that can be read"):
            build_tokenizer(str(tmp_path), source="tokenizer.model")


def test_probes_are_part_of_the_fingerprint(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(str(llama_folder(tmp_path)))
    settings = text_settings(None, tokenizer, get_template("vicuna"), 100)
    assert settings["tokenizer"]["probes"] == probe_digest(processor(tmp_path).encode)
    assert probe_digest(lambda text: [1]) != settings["tokenizer"]["probes"]
    assert len(PROBES) >= 50 and len(set(PROBES)) == len(PROBES)


def test_the_trained_file_is_like_llamas(tmp_path: Path) -> None:
    pieces = SentencePieceProcessor(model_file=str(sentencepiece_file(tmp_path / "tokenizer.model")))
    assert pieces.is_byte(5) and pieces.encode("\u6c49", out_type=str)[1] == "<0xE6>"
    assert "\u2581\u2581" in {pieces.id_to_piece(number) for number in range(pieces.get_piece_size())}
