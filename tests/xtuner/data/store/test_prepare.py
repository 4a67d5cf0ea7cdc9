from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from xtuner.data.sources import open_source
from xtuner.data.store import cache, prepare, shards
from xtuner.data.store.fingerprint import text_settings
from xtuner.data.store.prepared import PreparedData
from xtuner.data.text.conversations import parse_record
from xtuner.data.text.encoder import RecordEncoder
from xtuner.data.text.templates import get_template
from xtuner.data.text.tokenizing import encode_conversation
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


def parts(data_path: str | None, tokenizer: Any, template: str, length: int) -> tuple[dict[str, Any], RecordEncoder]:
    found = get_template(template)
    data = None if data_path is None else open_source(data_path).identity()
    return text_settings(data, tokenizer, found, length), RecordEncoder(tokenizer, found, length)


def make(
    data: str, out: Path | str, tokenizer: Any, template: str = "vicuna", length: int = 500, num_proc: int | None = None
) -> dict[str, int]:
    return prepare.prepare(open_source(data), out, *parts(data, tokenizer, template, length), num_proc)


def load(
    data: str | None, tokenizer: Any, template: str = "vicuna", length: int = 500, folder: str | None = None
) -> PreparedData:
    source = None if data is None else open_source(data)
    return prepare.load_prepared(source, *parts(data, tokenizer, template, length), folder)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture()
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "BATCH", 2)
    monkeypatch.setattr(shards, "BATCHES_PER_SHARD", 3)


def test_the_folder_holds_what_encoding_gives(
    data: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast, make_record: MakeRecord, small_shards: None
) -> None:
    report = make(data, tmp_path / "out", tokenizer)
    prepared = PreparedData(tmp_path / "out")
    # one of seven answers is empty but for the end
    assert report["records"] == report["kept"] == len(prepared) == 25
    assert len(list((tmp_path / "out").glob("*.arrow"))) == 5
    for again in (prepared, pickle.loads(pickle.dumps(prepared))):
        for number in range(25):
            talk = parse_record(make_record(number), number)
            wanted = encode_conversation(talk, tokenizer, get_template("vicuna"), 500)
            row = again.row(number)
            assert (row["id"], row["images"]) == (f"r{number}", [f"{number}.png"])
            assert (row["input_ids"], row["labels"]) == (wanted.input_ids, wanted.labels)
            assert row.numbers("labels").tolist() == wanted.labels
            assert again.index[number].tolist() == (len(wanted.input_ids), len(wanted.input_ids), 1)
    assert [name for (name,) in prepared.values("id")] == [f"r{number}" for number in range(25)]
    with pytest.raises(IndexError):
        prepared.row(25)


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
    report = make(write_records(records), tmp_path / "out", tokenizer, length=50)
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
    report = make(path, tmp_path / "out", tokenizer, length=40)
    assert report["cut off: pictures"] == 1
    assert load(path, tokenizer, length=40).row(0)["images"] == ["one.png"]


@pytest.mark.multi_process
def test_any_number_of_processes_writes_the_same_files(
    data: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast, small_shards: None
) -> None:
    for processes in (1, 2):
        make(data, tmp_path / str(processes), tokenizer, num_proc=processes)
    assert content(tmp_path / "1") == content(tmp_path / "2")


KILLED = """
import sys, time
from transformers import AutoTokenizer
from xtuner.data.store import prepare
from xtuner.data.sources import open_source
from xtuner.data.store import shards
from xtuner.data.text.encoder import RecordEncoder
from xtuner.data.store.fingerprint import text_settings
from xtuner.data.text.templates import get_template

data, out, tokenizer = sys.argv[1:]
shards.BATCH, shards.BATCHES_PER_SHARD = 2, 3

class Slow(RecordEncoder):
    def __call__(self, records):
        time.sleep(0.1)
        return super().__call__(records)

tokenizer = AutoTokenizer.from_pretrained(tokenizer)
template = get_template("vicuna")
source = open_source(data)
settings = text_settings(source.identity(), tokenizer, template, 500)
prepare.prepare(source, out, settings, Slow(tokenizer, template, 500), 1)
"""


class TestRestart:
    @pytest.mark.multi_process
    def test_killed_while_preparing(
        self,
        data: str,
        tmp_path: Path,
        tokenizer: PreTrainedTokenizerFast,
        small_shards: None,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        tokenizer.save_pretrained(tmp_path / "tokenizer")
        arguments = [data, str(tmp_path / "out"), str(tmp_path / "tokenizer")]
        process = subprocess.Popen([sys.executable, "-c", KILLED, *arguments], start_new_session=True)
        finished = tmp_path / ".out.unfinished" / "data-00001.json"
        deadline = time.monotonic() + 60
        while not finished.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert finished.exists() and not (tmp_path / "out").exists()
        calls: list[int] = []
        original = RecordEncoder.__call__

        def counted(self: RecordEncoder, records: Any) -> Any:
            calls.append(records[0].index)
            return original(self, records)

        monkeypatch.setattr(RecordEncoder, "__call__", counted)
        make(data, tmp_path / "out", tokenizer, num_proc=1)
        # two shards of three batches of two records are not made again
        assert min(calls) >= 12
        make(data, tmp_path / "whole", tokenizer, num_proc=1)
        assert content(tmp_path / "out") == content(tmp_path / "whole")
        assert not (tmp_path / ".out.unfinished").exists()

    def test_other_settings_start_anew(
        self, data: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast, small_shards: None
    ) -> None:
        unfinished = tmp_path / ".out.unfinished"
        settings, encoder = parts(data, tokenizer, "vicuna", 400)
        writer = shards.ShardWriter(unfinished, settings, encoder.schema)
        (unfinished / "data-00000.json").write_text("{}")
        (unfinished / ".data-00001.arrow.host-1").write_text("cut off")
        assert len(shards.ShardWriter(unfinished, settings, encoder.schema).shards) == 1
        assert not list(unfinished.glob(".data*"))
        assert writer.records_per_shard == 6
        make(data, tmp_path / "out", tokenizer)
        assert len(PreparedData(tmp_path / "out")) == 25

    def test_a_full_disk(
        self, data: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast, small_shards: None
    ) -> None:
        # a real limit on the size of files, in a process of its own
        script = KILLED.replace("0.1", "0").replace(
            "import sys, time", "import resource, signal, sys, time\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)"
        )
        script = script.replace(
            "prepare.prepare(", "resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))\nprepare.prepare("
        )
        tokenizer.save_pretrained(tmp_path / "tokenizer")
        arguments = [data, str(tmp_path / "out"), str(tmp_path / "tokenizer")]
        done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)
        assert done.returncode != 0
        assert "cannot be written to" in done.stderr and "free some space and start again" in done.stderr
        assert not (tmp_path / "out").exists()
        # with space the same command finishes
        make(data, tmp_path / "out", tokenizer)
        make(data, tmp_path / "whole", tokenizer)
        assert content(tmp_path / "out") == content(tmp_path / "whole")


class TestFaults:
    def test_all_faulty_records_are_named_and_nothing_is_left(
        self,
        write_records: Write,
        make_record: MakeRecord,
        tmp_path: Path,
        tokenizer: PreTrainedTokenizerFast,
        small_shards: None,
    ) -> None:
        good = [make_record(number) for number in range(10, 20)]
        path = write_records([make_record(1), make_record(2, image=None), *good, make_record(3, conversations=[])])
        with pytest.raises(ProblemsError) as error:
            make(path, tmp_path / "out", tokenizer)
        assert ["'r2'" in error.value.problems[0], "'r3'" in error.value.problems[1]] == [True, True]
        assert not list(tmp_path.glob("*out*"))

    def test_malformed_json_is_a_problem(self, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
        (tmp_path / "data.json").write_text('[{"id": 1,]')
        with pytest.raises(ProblemsError, match="malformed JSON: .*record number 1, line 1"):
            make(str(tmp_path / "data.json"), tmp_path / "out", tokenizer)

    def test_nothing_to_train_on(
        self, write_records: Write, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        with pytest.raises(XTunerError, match="no sample to train on: it is empty"):
            make(write_records([]), tmp_path / "out", tokenizer)

    def test_a_folder_with_something_else_is_left_alone(
        self, data: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.txt").write_text("x")
        with pytest.raises(XTunerError, match="is not a prepared data set"):
            make(data, tmp_path / "out", tokenizer)

    def test_a_shard_that_is_missing_or_cut_off(
        self, data: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast, small_shards: None
    ) -> None:
        out = tmp_path / "out"
        make(data, out, tokenizer)
        (out / "data-00002.arrow").unlink()
        (out / "data-00003.npy").write_bytes(b"x")
        with pytest.raises(XTunerError, match=r"incomplete: data-00002.arrow is missing; data-00003.npy has 1 bytes"):
            load(data, tokenizer, folder=str(out))

    def test_a_folder_of_an_older_version(self, data: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
        out = tmp_path / "out"
        make(data, out, tokenizer)
        settings = out / "settings.json"
        for content in ({"version": 1, "report": {}}, {**json.loads(settings.read_text()), "version": 1}):
            settings.write_text(json.dumps(content))
            with pytest.raises(XTunerError, match=r"prepared by another version \(format 1, expected \d+\): delete it"):
                load(data, tokenizer, folder=str(out))
            with pytest.raises(XTunerError, match="prepared by another version"):
                make(data, out, tokenizer)

    @pytest.mark.multi_process
    def test_a_worker_that_is_killed(
        self, data: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast, small_shards: None
    ) -> None:
        settings, _ = parts(data, tokenizer, "vicuna", 500)
        with pytest.raises(XTunerError, match="worker process .* was killed"):
            prepare.prepare(
                open_source(data), tmp_path / "out", settings, Dying(tokenizer, get_template("vicuna"), 500), 2
            )


class Dying(RecordEncoder):
    def __call__(self, records: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)


class TestOfflineFolder:
    def test_exactly_that_folder(self, data: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
        out = str(tmp_path / "out")
        make(data, out, tokenizer)
        for data_path in (data, None):
            assert len(load(data_path, tokenizer, folder=out)) == 25

    def test_each_difference_is_named(
        self,
        data: str,
        tmp_path: Path,
        tokenizer: PreTrainedTokenizerFast,
        make_tokenizer: Callable[..., Any],
    ) -> None:
        out = str(tmp_path / "out")
        make(data, out, tokenizer)
        with pytest.raises(XTunerError, match="max_length: prepared with 500, now 400"):
            load(data, tokenizer, length=400, folder=out)
        with pytest.raises(XTunerError, match="prompt_template.input: prepared with 'USER: "):
            load(data, tokenizer, "chatml", folder=out)
        with pytest.raises(XTunerError, match="tokenizer.digest"):
            load(data, make_tokenizer(eos_token="</s>"), folder=out)
        Path(data).write_text(Path(data).read_text().replace("number 3", "number 8"))
        with pytest.raises(XTunerError, match="data.digest"):
            load(data, tokenizer, folder=out)
        with pytest.raises(XTunerError, match="other settings: data.digest"):
            make(data, out, tokenizer)

    def test_missing(self, data: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
        with pytest.raises(XTunerError, match="does not exist.*xtuner preprocess llava"):
            load(data, tokenizer, folder=str(tmp_path / "no"))

    def test_preparing_again_keeps_it(self, data: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
        first = make(data, tmp_path / "out", tokenizer)
        written = (tmp_path / "out/settings.json").stat().st_mtime_ns
        assert make(data, tmp_path / "out", tokenizer) == first
        assert (tmp_path / "out/settings.json").stat().st_mtime_ns == written


class TestAutomaticCache:
    def test_the_second_start_prepares_nothing(
        self, data: str, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert len(load(data, tokenizer)) == 25
        monkeypatch.setattr(prepare, "prepare", None)
        monkeypatch.setattr(cache, "_file_digest", None)
        assert len(load(data, tokenizer)) == 25

    def test_other_settings_get_a_folder_of_their_own(
        self, data: str, own_cache: Path, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        load(data, tokenizer)
        load(data, tokenizer, length=400)
        assert sum(path.is_dir() for path in (own_cache / "prepared").iterdir()) == 2

    def test_a_damaged_cache_is_made_anew(self, data: str, own_cache: Path, tokenizer: PreTrainedTokenizerFast) -> None:
        load(data, tokenizer)
        (folder,) = (own_cache / "prepared").iterdir()
        (folder / "data-00000.arrow").unlink()
        assert len(load(data, tokenizer)) == 25

    def test_one_prepares_while_the_others_wait(
        self, data: str, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls: list[int] = []
        original = RecordEncoder.__call__

        def counted(self: RecordEncoder, records: Any) -> Any:
            calls.append(len(records))
            time.sleep(0.2)
            return original(self, records)

        monkeypatch.setattr(RecordEncoder, "__call__", counted)
        results: list[int] = []
        threads = [threading.Thread(target=lambda: results.append(len(load(data, tokenizer)))) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (calls, results) == ([25], [25, 25, 25])

    def test_no_data_at_all(self, tokenizer: PreTrainedTokenizerFast) -> None:
        with pytest.raises(XTunerError, match="set data_path"):
            load(None, tokenizer)


def test_settings_can_be_read_by_people(data: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    make(data, tmp_path / "out", tokenizer)
    settings = json.loads((tmp_path / "out/settings.json").read_text())
    assert settings["data"]["path"] == data
    assert settings["prompt_template"]["name"] == "vicuna"
    assert settings["report"]["kept"] == 25


def test_a_machine_without_locks_that_comes_second(
    data: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(data, tmp_path / "first", tokenizer)

    def other_was_first(unfinished: Path, out: Path) -> None:
        shutil.copytree(tmp_path / "first", out)
        raise FileNotFoundError(unfinished)

    monkeypatch.setattr(prepare, "publish", other_was_first)
    assert make(data, tmp_path / "out", tokenizer)["kept"] == 25
