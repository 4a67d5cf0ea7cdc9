"""Data sets of the Hub: which files they are, and what is said where there are none."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from xtuner.data.records.records import Record
from xtuner.data.sources import open_source
from xtuner.data.sources.hub import find_on_hub
from xtuner.errors import XTunerError

TALK = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]
SHA = "0123456789abcdef0123456789abcdef01234567"


class StubHub:
    """What `datasets` and the Hub's client say of one data set, whose files lie in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.error: Exception | None = None
        self.asked: list[tuple[str, str | None]] = []

    def load_dataset_builder(self, name: str, subset: str | None = None) -> Any:
        self.asked.append((name, subset))
        if self.error is not None:
            raise self.error
        files: dict[str, list[str]] = {}
        for path in sorted(self.folder.rglob("*.*")):
            where = path.relative_to(self.folder).as_posix()
            files.setdefault(where.split("/")[0], []).append(f"hf://datasets/{name}@{SHA}/{where}")
        return SimpleNamespace(config=SimpleNamespace(data_files=files))

    def snapshot_download(self, name: str, **options: Any) -> str:
        assert options["revision"] == SHA and options["repo_type"] == "dataset"
        return str(self.folder)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StubHub:
    monkeypatch.setenv("XTUNER_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    find_on_hub.cache_clear()
    stub = StubHub(tmp_path / "repository")
    for split, count in (("train", 3), ("dev", 1)):
        (stub.folder / split).mkdir(parents=True)
        for number in range(2):
            pq.write_table(pa.table({"messages": [TALK] * count}), stub.folder / split / f"{number}.parquet")
    monkeypatch.setattr("datasets.load_dataset_builder", stub.load_dataset_builder)
    monkeypatch.setattr("huggingface_hub.snapshot_download", stub.snapshot_download)
    return stub


def count(address: str) -> int:
    items = list(open_source(address).records())
    assert all(isinstance(item, Record) for item in items)
    return len(items)


def test_splits_and_subsets(hub: StubHub) -> None:
    assert (count("hf://owner/name"), count("hf://owner/name:dev"), count("hf://owner/name/sub:train")) == (6, 2, 6)
    assert hub.asked[-1] == ("owner/name", "sub")
    assert find_on_hub("hf://owner/name:dev").addresses[0] == f"hf://datasets/owner/name@{SHA}/dev/0.parquet"


def test_json_files_of_a_split_are_read_one_after_the_other(hub: StubHub) -> None:
    (hub.folder / "more").mkdir()
    for number in range(2):
        (hub.folder / f"more/{number}.jsonl").write_text(json.dumps({"messages": TALK}) + "\n")
    items = list(open_source("hf://owner/name:more").records())
    assert [item.index for item in items if isinstance(item, Record)] == [0, 1]


def test_a_split_that_is_not_there(hub: StubHub) -> None:
    with pytest.raises(XTunerError, match="has no split 'test': expected one of dev, train"):
        count("hf://owner/name:test")


@pytest.mark.parametrize("address", ["hf://name", "hf://", "hf://a/b/c/d", "hf://a/b:c:d", "hf://../x", "hf://a/b:"])
def test_what_is_no_address(address: str, hub: StubHub) -> None:
    if address == "hf://../x":
        hub.error = datasets.exceptions.DatasetNotFoundError("no such data set")
    with pytest.raises(XTunerError, match="no address of a data set|cannot be read|lies here"):
        open_source(address)


def test_offline(hub: StubHub) -> None:
    hub.error = ConnectionError("offline mode is enabled\nmore")
    with pytest.raises(XTunerError, match=r"Hub cannot be reached for 'hf://owner/name' \(offline mode is enabled\): "):
        count("hf://owner/name")
    hub.error = None
    assert count("hf://owner/name") == 6
    # what was there at the last start is found again
    find_on_hub.cache_clear()
    hub.error = ConnectionError("offline")
    assert count("hf://owner/name") == 6


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Dataset scripts are no longer supported, but found name.py"),
        datasets.exceptions.DatasetNotFoundError("Dataset 'owner/name' doesn't exist on the Hub"),
        ValueError("BuilderConfig 'x' not found. Available: ['a', 'b']"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(error: Exception, hub: StubHub) -> None:
    hub.error = error
    with pytest.raises(XTunerError, match="'hf://owner/name' cannot be read: ") as raised:
        count("hf://owner/name")
    assert "\n" not in str(raised.value)


def test_a_folder_of_the_same_name_is_not_taken_for_it(hub: StubHub, tmp_path: Path) -> None:
    (tmp_path / "owner/name").mkdir(parents=True)
    with pytest.raises(XTunerError, match="a folder 'owner/name' lies here"):
        count("hf://owner/name")
    assert not hub.asked


def test_the_library_itself_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_on_hub.cache_clear()
    monkeypatch.setenv("XTUNER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(XTunerError, match="the Hub cannot be reached for 'hf://nobody/nothing'"):
        count("hf://nobody/nothing")
