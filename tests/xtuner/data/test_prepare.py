from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from xtuner.data import arrow_batches, prepare
from xtuner.data.conversations import parse_record
from xtuner.data.fingerprint import text_settings
from xtuner.data.prepare import column, load_text, open_prepared, prepare_text
from xtuner.data.templates import get_template
from xtuner.data.tokenizing import encode_conversation
from xtuner.errors import ProblemsError, XTunerError

Write = Callable[..., str]
MakeRecord = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XTUNER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture()
def data(write_records: Write, make_record: MakeRecord) -> str:
    return write_records([make_record(number) for number in range(25)])


def test_the_folder_holds_what_encoding_gives(
    data: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast, make_record: MakeRecord
) -> None:
    report = prepare_text(data, tmp_path / "out", tokenizer, "vicuna", 500)
    prepared = open_prepared(tmp_path / "out", text_settings(data, tokenizer, get_template("vicuna"), 500))
    assert report["records"] == report["kept"] == len(prepared) == 25
    for number, row in enumerate(prepared):
        wanted = encode_conversation(parse_record(make_record(number), number), tokenizer, get_template("vicuna"), 500)
        assert (row["id"], row["images"]) == (f"r{number}", [f"{number}.png"])
        assert (row["input_ids"], row["labels"]) == (wanted.input_ids, wanted.labels)
    assert column(prepared, "length").tolist() == [len(row["input_ids"]) for row in prepared]


def test_what_is_dropped_and_cut_is_counted(
    write_records: Write, make_record: MakeRecord, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    ask = {"from": "human", "value": "Q"}
    records = [
        make_record(1),
        make_record(2, image=None, conversations=[ask]),
        make_record(3, image=None, conversations=[{**ask, "value": "Q" * 100}, {"from": "gpt", "value": "A"}]),
        make_record(
            4,
            conversations=[
                ask,
                {"from": "gpt", "value": "A"},
                {**ask, "value": "<image>" + "x" * 99},
                {"from": "gpt", "value": "B"},
            ],
        ),
    ]
    report = prepare_text(write_records(records), tmp_path / "out", tokenizer, "vicuna", 50)
    assert report == {
        "records": 4,
        "kept": 2,
        "dropped: nobody answers": 1,
        "dropped: no supervised token within max_length": 1,
        "cut off: samples": 1,
        "cut off: supervised tokens": 2,
        "cut off: pictures": 0,
    }


def test_a_picture_whose_place_was_cut_off_is_not_kept(
    write_records: Write, make_record: MakeRecord, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    talk = [
        {"from": "human", "value": "<image>\nQ"},
        {"from": "gpt", "value": "A" * 30},
        {"from": "human", "value": "<image>\nQ"},
        {"from": "gpt", "value": "B"},
    ]
    path = write_records([make_record(image=["one.png", "two.png"], conversations=talk)])
    report = prepare_text(path, tmp_path / "out", tokenizer, "vicuna", 40)
    assert report["cut off: pictures"] == 1
    assert load_text(path, tokenizer, "vicuna", 40)[0]["images"] == ["one.png"]


@pytest.mark.multi_process
def test_any_number_of_processes_writes_the_same_file(
    data: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "BATCH", 4)
    for processes in (1, 2):
        prepare_text(data, tmp_path / str(processes), tokenizer, "vicuna", 500, num_proc=processes)
    assert (tmp_path / "1/data.arrow").read_bytes() == (tmp_path / "2/data.arrow").read_bytes()


class TestFaults:
    def test_all_faulty_records_are_named_and_nothing_is_left(
        self,
        write_records: Write,
        make_record: MakeRecord,
        tmp_path: Path,
        tokenizer: PreTrainedTokenizerFast,
    ) -> None:
        path = write_records([make_record(1), make_record(2, image=None), make_record(3, conversations=[])])
        with pytest.raises(ProblemsError) as error:
            prepare_text(path, tmp_path / "out", tokenizer, "vicuna", 500)
        assert ["'r2'" in error.value.problems[0], "'r3'" in error.value.problems[1]] == [True, True]
        assert not list(tmp_path.glob("*out*"))

    def test_nothing_to_train_on(
        self, write_records: Write, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        with pytest.raises(XTunerError, match="no sample to train on"):
            prepare_text(write_records([]), tmp_path / "out", tokenizer, "vicuna", 500)

    def test_a_full_disk(
        self, data: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(prepare, "encoded_batches", full)
        with pytest.raises(XTunerError, match="cannot be written to .*No space left"):
            prepare_text(data, tmp_path / "out", tokenizer, "vicuna", 500)
        assert not list(tmp_path.glob("*out*"))

    def test_a_folder_with_something_else_is_left_alone(
        self, data: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.txt").write_text("x")
        with pytest.raises(XTunerError, match="is no prepared data set"):
            prepare_text(data, tmp_path / "out", tokenizer, "vicuna", 500)


class TestOfflineFolder:
    def test_exactly_that_folder(self, data: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
        out = str(tmp_path / "out")
        prepare_text(data, out, tokenizer, "vicuna", 500)
        for data_path in (data, None):
            assert len(load_text(data_path, tokenizer, "vicuna", 500, offline_processed_text_folder=out)) == 25

    def test_each_difference_is_named(
        self,
        data: str,
        tmp_path: Path,
        tokenizer: PreTrainedTokenizerFast,
        make_tokenizer: Callable[..., Any],
    ) -> None:
        out = str(tmp_path / "out")
        prepare_text(data, out, tokenizer, "vicuna", 500)
        with pytest.raises(XTunerError, match="max_length: prepared with 500, now 400"):
            load_text(data, tokenizer, "vicuna", 400, out)
        with pytest.raises(XTunerError, match="prompt_template.input: prepared with 'USER: "):
            load_text(data, tokenizer, "chatml", 500, out)
        with pytest.raises(XTunerError, match="tokenizer.digest"):
            load_text(data, make_tokenizer(eos_token="</s>"), "vicuna", 500, out)
        Path(data).write_text(Path(data).read_text().replace("number 3", "number 8"))
        with pytest.raises(XTunerError, match="data.digest"):
            load_text(data, tokenizer, "vicuna", 500, out)
        with pytest.raises(XTunerError, match="other settings: data.digest"):
            prepare_text(data, out, tokenizer, "vicuna", 500)

    def test_missing(self, data: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
        with pytest.raises(XTunerError, match="does not exist.*xtuner preprocess llava"):
            load_text(data, tokenizer, "vicuna", 500, str(tmp_path / "no"))

    def test_preparing_again_keeps_it(self, data: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
        first = prepare_text(data, tmp_path / "out", tokenizer, "vicuna", 500)
        written = (tmp_path / "out/data.arrow").stat().st_mtime_ns
        assert prepare_text(data, tmp_path / "out", tokenizer, "vicuna", 500) == first
        assert (tmp_path / "out/data.arrow").stat().st_mtime_ns == written


class TestAutomaticCache:
    def test_the_second_start_prepares_nothing(
        self, data: str, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert len(load_text(data, tokenizer, "vicuna", 500)) == 25
        monkeypatch.setattr(prepare, "prepare_text", None)
        monkeypatch.setattr("xtuner.data.fingerprint._file_digest", None)
        assert len(load_text(data, tokenizer, "vicuna", 500)) == 25

    def test_other_settings_get_a_folder_of_their_own(
        self, data: str, own_cache: Path, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        load_text(data, tokenizer, "vicuna", 500)
        load_text(data, tokenizer, "vicuna", 400)
        assert sum(path.is_dir() for path in (own_cache / "text").iterdir()) == 2

    def test_one_prepares_while_the_others_wait(
        self, data: str, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls: list[str] = []
        original = prepare_text

        def counted(*args: Any) -> dict[str, int]:
            calls.append(args[0])
            return original(*args)

        monkeypatch.setattr(prepare, "prepare_text", counted)
        results: list[int] = []
        threads = [
            threading.Thread(target=lambda: results.append(len(load_text(data, tokenizer, "vicuna", 500))))
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(calls), results) == (1, [25, 25, 25])

    def test_leftovers_of_a_killed_run_are_removed(
        self, data: str, own_cache: Path, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        load_text(data, tokenizer, "vicuna", 500)
        (folder,) = (path for path in (own_cache / "text").iterdir() if path.is_dir())
        leftover = folder.with_name(f".{folder.name}.unfinished-1")
        folder.rename(leftover)
        assert len(load_text(data, tokenizer, "vicuna", 500)) == 25
        assert not leftover.exists()

    def test_no_data_at_all(self, tokenizer: PreTrainedTokenizerFast) -> None:
        with pytest.raises(XTunerError, match="set data_path"):
            load_text(None, tokenizer, "vicuna", 500)


def test_settings_can_be_read_by_people(data: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    prepare_text(data, tmp_path / "out", tokenizer, "vicuna", 500)
    settings = json.loads((tmp_path / "out/settings.json").read_text())
    assert settings["data"]["path"] == data
    assert settings["prompt_template"]["name"] == "vicuna"
    assert settings["report"]["kept"] == 25


def test_counts_of_one_batch(tokenizer: PreTrainedTokenizerFast, make_record: MakeRecord) -> None:
    talks = [parse_record(make_record(number), number) for number in range(3)]
    batch, counts = arrow_batches.encode_batch(talks, tokenizer, get_template("vicuna"), 500)
    assert (batch.num_rows, counts["kept"]) == (3, 3)
    assert batch.schema == arrow_batches.schema()
