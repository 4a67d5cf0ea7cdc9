"""Videos inside the data: Parquet, Arrow, WebDataset, streams, archives, and data that is written to be shared."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mg_llava.data.dataset import MGLLaVADataset
from mg_llava.data.stream import MGLLaVAStream
from mg_llava.videos.cache.reading import FrameCache
from mg_llava.videos.sampling import FrameSampling
from tests.clips import write_clip, write_frames
from tests.mg_llava.data.test_dataset import talk, world
from tests.mg_llava.data.test_videos import shown
from tests.source_files import write_tar
from xtuner.errors import ProblemsError, XTunerError

__all__ = ["world"]

ASK = "<video>\nWhat is this"
RECORDS: list[dict[str, Any]] = [
    {"id": "clip", "video": "v/long.mp4", "conversations": talk(ASK)},
    {"id": "part", "video": "v/long.mp4#t=1,1.5", "conversations": talk(ASK)},
    {"id": "both", "image": "a.png", "video": "v/short.mkv", "conversations": talk("<image> What <video>")},
    {"id": "two", "video": ["v/short.mkv", "v/long.mp4"], "conversations": talk("<video> What <video>")},
    {"id": "picture", "image": "a.png", "conversations": talk("<image>\nWhat is this")},
    {"id": "text", "conversations": talk("What is this dog", "This.")},
]
KINDS = ("parquet", "plain parquet", "arrow", "webdataset")
FILE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
TALK = pa.list_(pa.struct({"from": pa.string(), "value": pa.string()}))
SCHEMA = pa.schema({"id": pa.string(), "images": pa.list_(FILE), "videos": pa.list_(FILE), "conversations": TALK})


@pytest.fixture
def clips(world: Any, tmp_path: Path) -> dict[str, Any]:
    """The arguments of a data set of pictures, videos and text."""
    write_clip(tmp_path / "v" / "long.mp4", count=16)
    write_clip(tmp_path / "v" / "short.mkv", count=3)
    return world(RECORDS, box_json_path=None)


def names(record: dict[str, Any], field: str) -> list[str]:
    found = record.get(field) or []
    return [found] if isinstance(found, str) else found


def stored(folder: Path, name: str) -> dict[str, Any]:
    return {"bytes": (folder / name.partition("#t=")[0]).read_bytes(), "path": name}


def write_source(kind: str, folder: Path, records: list[dict[str, Any]] = RECORDS) -> str:
    """Writes the records with the bytes of their pictures and videos; returns their ``data_path``."""
    rows = [
        {
            "id": record["id"],
            "images": [stored(folder, name) for name in names(record, "image")],
            "videos": [stored(folder, name) for name in names(record, "video")],
            "conversations": record["conversations"],
        }
        for record in records
    ]
    if kind == "webdataset":
        members: list[tuple[str, bytes]] = []
        for number, (record, row) in enumerate(zip(records, rows, strict=True)):
            for place, one in enumerate([*row["images"], *row["videos"]]):
                suffix = one["path"].partition("#t=")[0].rpartition(".")[2]
                members.append((f"{number:04d}.{place}.{suffix}", one["bytes"]))
            members.append((f"{number:04d}.json", json.dumps(record).encode()))
        write_tar(folder / "shard.tar", members)
        return str(folder / "shard.tar")
    table = pa.Table.from_pylist(rows, SCHEMA)
    if kind == "arrow":
        with pa.OSFile(str(folder / "all.arrow"), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
            writer.write_table(table, max_chunksize=2)
        return str(folder / "all.arrow")
    compression = "none" if kind == "plain parquet" else "snappy"
    pq.write_table(table, folder / "all.parquet", row_group_size=2, compression=compression, use_dictionary=False)
    return str(folder / "all.parquet")


def same_samples(ours: MGLLaVADataset, theirs: MGLLaVADataset) -> None:
    assert ours.lengths.tolist() == theirs.lengths.tolist()
    for number in range(len(theirs)):
        one, other = ours[number], theirs[number]
        assert one["sample_id"] == other["sample_id"]
        assert all(torch.equal(one[name], other[name]) for name in ("input_ids", "labels", "pixel_values"))


class TestKinds:
    @pytest.mark.parametrize("kind", KINDS)
    def test_the_same_samples(self, clips: dict[str, Any], tmp_path: Path, kind: str) -> None:
        path = write_source(kind, tmp_path)
        given = {**clips, "data_path": path, "image_folder": "nowhere"}
        dataset = MGLLaVADataset(**given)
        same_samples(dataset, MGLLaVADataset(**clips))
        row, _ = dataset.samples.row(1)
        assert row["images"][0].startswith("video:source:") and "@v/long.mp4#frame=8," in row["images"][0]
        assert MGLLaVADataset.check_records(given).problems == []
        notes = "\n".join(MGLLaVADataset.check_records(given).notes)
        assert ("compresses its" in notes) == (kind == "parquet")

    @pytest.mark.parametrize("column", ["bytes", "paths", "one file"])
    def test_other_columns(self, clips: dict[str, Any], tmp_path: Path, column: str) -> None:
        record = RECORDS[0]
        content = (tmp_path / "v" / "long.mp4").read_bytes()
        kinds: dict[str, tuple[pa.DataType, Any]] = {
            "bytes": (pa.binary(), content),
            "paths": (pa.string(), "v/long.mp4"),
            "one file": (FILE, {"bytes": content, "path": "v/long.mp4"}),
        }
        kind, value = kinds[column]
        schema = pa.schema({"clip": kind, "conversations": TALK})
        rows = [{"clip": value, "conversations": record["conversations"]}]
        pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "own.parquet")
        given = {**clips, "data_path": str(tmp_path / "own.parquet"), "data_columns": {"video": "clip"}}
        (sample,) = (MGLLaVADataset(**given)[number] for number in range(1))
        assert shown(sample) == [0, 2, 4, 6, 8, 10, 12, 15]

    def test_columns_that_hold_no_videos(self, clips: dict[str, Any], tmp_path: Path) -> None:
        schema = pa.schema({"video": pa.int64(), "conversations": TALK})
        rows = [{"video": 1, "conversations": talk(ASK)}]
        pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "own.parquet")
        with pytest.raises(XTunerError, match="'video' of .* is of type int64, and holds no videos"):
            MGLLaVADataset(**{**clips, "data_path": str(tmp_path / "own.parquet")})
        both = pa.schema({"video": pa.string(), "videos": pa.list_(pa.string()), "conversations": TALK})
        rows = [{"video": "a.mp4", "videos": ["a.mp4"], "conversations": talk(ASK)}]
        pq.write_table(pa.Table.from_pylist(rows, both), tmp_path / "own.parquet")
        with pytest.raises(XTunerError, match="'video' and 'videos' may both be the videos"):
            MGLLaVADataset(**{**clips, "data_path": str(tmp_path / "own.parquet")})
        null = pa.Table.from_pylist([{"videos": [None], "conversations": talk(ASK)}], SCHEMA)
        pq.write_table(null, tmp_path / "own.parquet")
        with pytest.raises(ProblemsError, match="bad video: record number 1 of .*video 1 of column 'videos' is null"):
            MGLLaVADataset(**{**clips, "data_path": str(tmp_path / "own.parquet")})

    @pytest.mark.parametrize("kind", ["plain parquet", "webdataset"])
    def test_a_stream(self, clips: dict[str, Any], tmp_path: Path, kind: str) -> None:
        prepared = MGLLaVADataset(**clips)
        wanted = {prepared[number]["sample_id"]: prepared[number] for number in range(len(prepared))}
        path = write_source(kind, tmp_path)
        # nothing but the shards is there
        for name in ("long.mp4", "short.mkv"):
            (tmp_path / "v" / name).unlink()
        stream = iter(MGLLaVAStream(**{**clips, "data_path": path, "image_folder": "", "buffer": 3}))
        for _ in range(len(RECORDS)):
            batch = next(stream)
            (name,) = batch["sample_ids"]
            other = prepared.collate_fn([wanted.pop(name)])
            assert torch.equal(batch["pixel_values"], other["pixel_values"])
            assert torch.equal(batch["input_ids"], other["input_ids"])
        assert not wanted

    def test_frames_are_kept_by_their_places(self, clips: dict[str, Any], tmp_path: Path) -> None:
        given = {**clips, "data_path": write_source("plain parquet", tmp_path), "image_folder": ""}
        MGLLaVADataset.keep_frames(given, str(tmp_path / "kept"), "png", 95, 1)
        dataset = MGLLaVADataset(**given, frame_cache=str(tmp_path / "kept"))
        assert isinstance(dataset.samples.files[0].cached, FrameCache)
        assert dataset.samples.files[0].not_kept(dataset.samples.row(1)[0]["images"]) == 0
        same_samples(dataset, MGLLaVADataset(**clips))


class TestArchives:
    def test_folders_of_frames(self, clips: dict[str, Any], tmp_path: Path) -> None:
        write_frames(tmp_path / "v" / "frames", count=12)
        (tmp_path / "v" / "frames" / "notes.txt").write_text("no picture")
        with zipfile.ZipFile(tmp_path / "v.zip", "w") as archive:
            for path in sorted((tmp_path / "v").rglob("*")):
                if path.is_file():
                    archive.write(path, str(path.relative_to(tmp_path)))
        record = {"id": "a", "video": "v/frames", "conversations": talk(ASK)}
        (tmp_path / "data.json").write_text(json.dumps([record, RECORDS[0]]))
        given = {**clips, "frame_sampling": FrameSampling(num_frames=4)}
        plain = MGLLaVADataset(**given)
        zipped = MGLLaVADataset(**{**given, "image_folder": str(tmp_path / "v.zip")})
        assert shown(plain[0]) == [0, 3, 7, 11]
        same_samples(zipped, plain)
        assert zipped.samples.row(0)[0]["images"][3] == "v/frames/12.png"


class TestSharing:
    def write(self, node: dict[str, Any], out: Path) -> dict[str, int]:
        return MGLLaVADataset.write_records({"type": MGLLaVADataset, **node}, str(out), 1 << 20, 1 << 10)

    def test_the_same_samples(self, clips: dict[str, Any], tmp_path: Path) -> None:
        counts = self.write(clips, tmp_path / "out")
        assert counts == {"records": 6, "pictures": 2, "videos": 5, "files": 1}
        again = {**clips, "data_path": str(tmp_path / "out"), "image_folder": ""}
        same_samples(MGLLaVADataset(**again), MGLLaVADataset(**clips))
        assert MGLLaVADataset(**again).samples.sources[0].cost_note() is None
        # and from there once more
        self.write(again, tmp_path / "twice")
        one, two = (pq.read_table(tmp_path / name / "data").drop_columns("source") for name in ("out", "twice"))
        assert one == two
        found = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "hf"))
        assert found[1]["videos"][0]["path"] == "v/long.mp4#t=1,1.5"

    def test_openai_parts(self, clips: dict[str, Any], tmp_path: Path) -> None:
        parts = [{"type": "video_url", "video_url": {"url": "v/short.mkv"}}, {"type": "text", "text": "What is this"}]
        messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": "A dog."}]
        (tmp_path / "data.json").write_text(json.dumps([{"id": "a", "messages": messages}]))
        assert self.write(clips, tmp_path / "out")["videos"] == 1
        again = {**clips, "data_path": str(tmp_path / "out"), "image_folder": ""}
        same_samples(MGLLaVADataset(**again), MGLLaVADataset(**clips))

    def test_what_cannot_be_written_is_named(self, clips: dict[str, Any], tmp_path: Path) -> None:
        write_frames(tmp_path / "v" / "frames", count=2)
        (tmp_path / "v" / "bad.mp4").write_bytes(b"no video")
        videos = ("v/frames", "v/bad.mp4", "v/none.mp4", "v/long.mp4#t=2,1")
        records = [{"id": name, "video": name, "conversations": talk(ASK)} for name in videos]
        (tmp_path / "data.json").write_text(json.dumps(records))
        with pytest.raises(ProblemsError) as caught:
            self.write(clips, tmp_path / "out")
        told = caught.value.problems
        assert len(told) == 4 and not (tmp_path / "out").exists()
        assert "is a folder of frames, which a row cannot hold" in told[0] and "bad.mp4' is no MP4" in told[1]
        assert "none.mp4' does not exist" in told[2] and "the range from 2.0 to 1.0 s is empty" in told[3]

    def test_boxes_of_frames_stay_in_their_file(
        self, clips: dict[str, Any], tmp_path: Path, framework_log: Any
    ) -> None:
        boxes = {"boxes": [[0, 0, 8, 8]], "labels": ["dog"], "scores": [0.5]}
        frames = [{"time": 0.0, **boxes}, {"time": 1.0, **boxes}]
        record = {"video": "v/long.mp4", "frames": frames, "width": 32, "height": 24}
        (tmp_path / "boxes.json").write_text(json.dumps([record]))
        given = {**clips, "box_json_path": str(tmp_path / "boxes.json")}
        self.write(given, tmp_path / "out")
        told = [record.getMessage() for record in framework_log if "are not written" in record.getMessage()]
        assert len(told) == 1 and "go on with box_json_path=" in told[0]
        again = MGLLaVADataset(**{**given, "data_path": str(tmp_path / "out"), "image_folder": ""})
        plain = MGLLaVADataset(**given)
        found = [[len(boxes) for boxes in dataset[0]["boxes"]] for dataset in (again, plain)]
        # at 0, 0.25, 0.5, 0.75, 1, 1.25, 1.5 and 1.875 s
        assert found == [[1, 1, 0, 1, 1, 1, 0, 0]] * 2
        assert np.array_equal(again.lengths, plain.lengths)
