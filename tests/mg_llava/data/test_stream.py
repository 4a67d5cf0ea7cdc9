"""A stream: the samples of prepared data, an order of the seed, resumed at its place."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from PIL import Image

from mg_llava.data.dataset import MGLLaVADataset
from mg_llava.data.stream import MGLLaVAStream
from tests.mg_llava.data.test_dataset import box_record, talk, world
from tests.source_files import as_rows, write_source
from xtuner.engine.processes.environment import Environment
from xtuner.engine.steps.loader import StreamLoader, build_train_dataloader
from xtuner.errors import XTunerError

__all__ = ["world"]

COUNT = 23
KINDS = ("parquet", "webdataset")


def stream_data(kind: str, world: Any, tmp_path: Path, **changes: Any) -> dict[str, Any]:
    """23 records in two shards, as arguments of a stream."""
    arguments = world()
    records, boxes = [], []
    for number in range(COUNT):
        name = f"s{number}.png"
        Image.new("RGB", (12, 8), (number * 10, 0, 0)).save(tmp_path / name)
        question = "<image>\n" + "What is this " * (number % 4 + 1)
        records.append({"id": f"r{number}", "image": name, "conversations": talk(question)})
        boxes.append(box_record(name, number % 3, width=12, height=8))
    rows = as_rows(records, tmp_path, boxes)
    if "spoil" in changes:
        changes.pop("spoil")(rows)
    path = write_source(kind, tmp_path / "source", rows)
    return {**arguments, "data_path": path, "image_folder": "", "box_json_path": None, **changes}


def loader_of(arguments: dict[str, Any], workers: int = 0, rank: int = 0, ranks: int = 1, **node: Any) -> StreamLoader:
    dataset = MGLLaVAStream(**{"buffer": 4, **arguments})
    settings = {"batch_size": 3, "num_workers": workers, "sampler": {"type": "any", **node}}
    environment = Environment("none", rank, ranks, 0, torch.device("cpu"))
    loader = build_train_dataloader(settings, dataset, 1, environment, seed=5)
    assert isinstance(loader, StreamLoader)
    return loader


def take(loader: StreamLoader, number: int) -> list[dict[str, Any]]:
    """Takes micro-batches as the training loop does."""
    found, batches = [], iter(loader)
    for _ in range(number):
        batch = next(batches)
        loader.batch_sampler.took([batch])
        found.append(batch)
    return found


def ids(batches: list[dict[str, Any]]) -> list[str]:
    return [name for batch in batches for name in batch["sample_ids"]]


@pytest.mark.parametrize("kind", KINDS)
def test_the_samples_of_prepared_data_each_once_an_epoch(kind: str, world: Any, tmp_path: Path) -> None:
    arguments = stream_data(kind, world, tmp_path)
    prepared = MGLLaVADataset(**arguments)
    known = {prepared.samples.row(number)[0]["id"]: number for number in range(COUNT)}
    batches = take(loader_of(arguments), 2 * COUNT // 3 + 1)
    seen = ids(batches)
    assert sorted(seen[:COUNT]) == sorted(known) and seen[:COUNT] != sorted(known, key=known.__getitem__)
    assert Counter(seen[COUNT : 2 * COUNT]).most_common(1)[0][1] == 1 and seen[:COUNT] != seen[COUNT : 2 * COUNT]
    for batch in batches[:3]:
        same = prepared.collate_fn([prepared[known[name]] for name in batch["sample_ids"]])
        for name in ("input_ids", "labels", "attention_mask", "pixel_values"):
            assert torch.equal(batch[name], same[name])
        assert all(torch.equal(*pair) for pair in zip(batch["boxes"], same["boxes"], strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [None, 40])
@pytest.mark.parametrize("done", [1, 2, 5, 9, 14])
def test_goes_on_at_exactly_the_next_sample(
    kind: str, tokens: int | None, done: int, world: Any, tmp_path: Path
) -> None:
    arguments = stream_data(kind, world, tmp_path)
    whole = take(loader_of(arguments, max_tokens_per_batch=tokens), 20)
    first = loader_of(arguments, max_tokens_per_batch=tokens)
    take(first, done)
    again = loader_of(arguments, max_tokens_per_batch=tokens)
    again.batch_sampler.continue_order(first.batch_sampler.order_facts())
    again.batch_sampler.continue_at(first.batch_sampler.place())
    assert ids(take(again, 20 - done)) == ids(whole[done:])
    if tokens is not None:
        lengths: dict[str, int] = {}
        for batch in whole:
            lengths.update(zip(batch["sample_ids"], batch["attention_mask"].sum(dim=1).tolist(), strict=True))
        per_picture = MGLLaVAStream(**arguments).maker.processor.num_image_tokens - 1
        for batch in whole:
            total = sum(lengths[name] + per_picture for name in batch["sample_ids"])
            assert total + sum(map(len, batch["boxes"])) <= tokens


@pytest.mark.parametrize("kind", KINDS)
def test_shards_that_lie_elsewhere_are_read_there(kind: str, world: Any, tmp_path: Path) -> None:
    arguments = stream_data(kind, world, tmp_path)
    here = ids(take(loader_of(arguments), 9))
    remote = fsspec.filesystem("memory")
    paths = sorted((tmp_path / "source").iterdir())
    suffix = paths[0].suffix
    for number, path in enumerate(paths):
        remote.pipe(f"/shards/{number:02d}{suffix}", path.read_bytes())
    address = f"memory://shards/{{00..{len(paths) - 1:02d}}}{suffix}"
    assert ids(take(loader_of({**arguments, "data_path": address}), 9)) == here
    with pytest.raises(XTunerError, match="cannot be read"):
        take(loader_of({**arguments, "data_path": f"memory://shards/{{07..08}}{suffix}"}), 1)


@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_and_workers_share_the_stream(workers: int, world: Any, tmp_path: Path) -> None:
    arguments = stream_data("webdataset", world, tmp_path)
    parts = 2 * max(1, workers)
    seen = []
    for rank in range(2):
        # one sample a micro-batch, and an epoch of every part but its last samples
        loader = loader_of(arguments, workers, rank, 2)
        seen += [set(ids(take(loader, COUNT // parts // 3 * max(1, workers))))]
    assert not seen[0] & seen[1] and all(seen)


def test_workers_go_on_where_each_of_them_was(world: Any, tmp_path: Path) -> None:
    arguments = stream_data("webdataset", world, tmp_path)
    whole = ids(take(loader_of(arguments, 2), 9))
    first = loader_of(arguments, 2)
    take(first, 3)
    again = loader_of(arguments, 2)
    again.batch_sampler.continue_at(first.batch_sampler.place())
    assert ids(take(again, 6)) == whole[9:]
    other = loader_of(arguments, 0)
    with pytest.raises(XTunerError, match="places of 2 workers of a stream, this run has 1"):
        other.batch_sampler.continue_at(first.batch_sampler.place())
    with pytest.raises(XTunerError, match="read by 2 processes in micro-batches of 3, this run has 1"):
        other.batch_sampler.continue_order({"made_for": [3, 2]})


class TestFaults:
    def spoil(self, rows: list[Any]) -> None:
        rows[3]["conversations"] = []
        rows[5]["images"][0]["bytes"] = b"no picture"
        rows[7]["boxes"][0] = [[1.0]]

    @pytest.mark.parametrize("kind", KINDS)
    def test_bad_samples_are_counted(self, kind: str, world: Any, tmp_path: Path) -> None:
        arguments = stream_data(kind, world, tmp_path, spoil=self.spoil)
        batches = take(loader_of({**arguments, "on_bad_sample": "skip"}), 8)
        kinds = Counter(bad.kind for batch in batches for bad in batch["bad_samples"])
        assert kinds.keys() >= {"no messages", "picture does not decode", "malformed boxes"}
        assert not {"r3", "r5", "r7"} & set(ids(batches))
        with pytest.raises(XTunerError, match="source"):
            take(loader_of(arguments), 8)

    def silence(self, rows: list[Any]) -> None:
        """Leaves three records from which nothing is learned."""
        question, answer = rows[2]["conversations"]
        rows[2]["conversations"] = [question]
        rows[4]["weight"] = 0
        rows[6]["conversations"] = [{**question, "value": "<image>\n" + "What " * 60}, answer]

    @pytest.mark.parametrize("mode", ["raise", "skip"])
    def test_records_that_teach_nothing_are_no_faults(self, mode: str, world: Any, tmp_path: Path) -> None:
        arguments = stream_data("webdataset", world, tmp_path, spoil=self.silence)
        arguments |= {"max_length": 40, "on_bad_sample": mode}
        batches = take(loader_of(arguments), 8)
        assert not {"r2", "r4", "r6"} & set(ids(batches))
        bad = [one for batch in batches for one in batch["bad_samples"]]
        assert {one.kind for one in bad} == {"no answer", "no answer with loss", "answer beyond max_length"}
        assert not any(one.is_fault for one in bad)
        # as a check of the prepared data names them
        notes = MGLLaVADataset.check_records(arguments).notes
        for one in bad:
            assert any(note.startswith(f"{one.kind}: {one.message.split('(number')[0]}") for note in notes)

    def test_a_stream_that_teaches_nothing_ends(self, world: Any, tmp_path: Path) -> None:
        def no_answers(rows: list[Any]) -> None:
            for row in rows:
                row["conversations"] = row["conversations"][:1]

        arguments = stream_data("parquet", world, tmp_path, spoil=no_answers)
        with pytest.raises(XTunerError, match="a whole pass over a part of the stream gives no sample, the last: rec"):
            take(loader_of(arguments), 1)

    def test_a_stream_of_nothing_but_faults_ends(
        self, world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def all_bad(rows: list[Any]) -> None:
            for row in rows:
                row["conversations"] = []

        arguments = stream_data("parquet", world, tmp_path, spoil=all_bad)
        with pytest.raises(XTunerError, match="a whole pass over a part of the stream gives no sample, the last: rec"):
            take(loader_of({**arguments, "on_bad_sample": "skip"}), 1)
        # of a long one the first thousand say enough
        monkeypatch.setattr("xtuner.data.batches.stream._MOST_BAD", 10)
        with pytest.raises(XTunerError, match="12 samples cannot be read and none can"):
            take(loader_of({**arguments, "on_bad_sample": "skip"}), 1)

    def test_samples_longer_than_a_row_are_bad(self, world: Any, tmp_path: Path) -> None:
        arguments = {**stream_data("parquet", world, tmp_path), "on_bad_sample": "skip"}
        batches = take(loader_of(arguments, max_tokens_per_batch=22), 6)
        assert any("more than max_tokens_per_batch" in bad.message for batch in batches for bad in batch["bad_samples"])

    def test_what_a_stream_cannot_do(self, world: Any, tmp_path: Path) -> None:
        arguments = stream_data("parquet", world, tmp_path)
        with pytest.raises(XTunerError, match="a stream takes one data_path and no prepared folder"):
            MGLLaVAStream(**{**arguments, "data_path": [arguments["data_path"]] * 2})
        with pytest.raises(XTunerError, match="is json, which is not streamed"):
            MGLLaVAStream(**world())
        with pytest.raises(XTunerError, match="no known length, so max_epochs=1 says nothing: set max_iters"):
            loader_of(arguments).batch_sampler.steps_in(1)
        with pytest.raises(XTunerError, match="not checked before training"):
            MGLLaVAStream.check_records({})

    def test_an_empty_stream(self, world: Any, tmp_path: Path) -> None:
        arguments = stream_data("webdataset", world, tmp_path, spoil=lambda rows: rows.clear())
        with pytest.raises(XTunerError, match="holds no record"):
            take(loader_of(arguments), 1)

    def test_a_shard_that_is_cut_off(self, world: Any, tmp_path: Path) -> None:
        arguments = stream_data("webdataset", world, tmp_path)
        (shard, *_) = sorted((tmp_path / "source").glob("*.tar"))
        shard.write_bytes(shard.read_bytes()[:3000])
        with pytest.raises(XTunerError, match="cannot be read to its end"):
            take(loader_of(arguments), 8)


def test_an_address_that_needs_another_package(world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacks(*_: Any) -> None:
        raise ImportError('HTTPFileSystem requires "aiohttp" to be installed')

    monkeypatch.setattr(fsspec, "open", lacks)
    arguments = {**stream_data("webdataset", world, tmp_path), "data_path": "https://host/a-{0..1}.tar"}
    with pytest.raises(XTunerError, match=r'a-\d.tar. cannot be read .*"aiohttp".*: install what it names'):
        take(loader_of(arguments), 1)
