"""Boxes for a data set: complete, restartable, by several processes; and the command that starts it."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from mg_llava.boxes.selection import PictureBoxes, no_boxes
from mg_llava.boxes.store import BoxStore
from mg_llava.data.box_columns import find_boxes
from mg_llava.detectors.generation import BoxGeneration
from tests.clips import write_clip, write_frames
from tests.source_files import as_rows, write_source, write_tar
from tests.tiny_assistant import save_picture
from tests.tiny_detectors import NAMES, tiny_owlv2
from xtuner.cli import main
from xtuner.data.records.records import Record
from xtuner.data.sources import open_source
from xtuner.data.sources.locate import locate
from xtuner.errors import XTunerError

ROOT = Path(__file__).parents[3]


class Whole:
    """Finds one box, the picture itself; counts its calls; may be slow or break."""

    calls: ClassVar[list[int]] = []
    breaks_after = 10**9

    def __init__(self, label: str = "all", seconds: float = 0.0, device: Any = None) -> None:
        self.label = label
        self.seconds = seconds

    def __call__(self, pictures: Sequence[Image.Image], keys: Sequence[str] | None = None) -> list[PictureBoxes]:
        time.sleep(self.seconds)
        if sum(Whole.calls) + len(pictures) > Whole.breaks_after:
            raise KeyboardInterrupt
        Whole.calls.append(len(pictures))
        return [
            PictureBoxes(np.array([[0, 0, *picture.size]], np.float32), (self.label,), np.ones(1, np.float32))
            if picture.width > 20
            else no_boxes()
            for picture in pictures
        ]


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Whole, "calls", [])
    monkeypatch.setattr(Whole, "breaks_after", 10**9)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(10):
        save_picture(tmp_path / "images" / "train" / f"{number}.png", number, (20 + number, 15))
    return tmp_path / "images"


def generation(folder: Path, **arguments: Any) -> BoxGeneration:
    detector = arguments.pop("detector", {"type": Whole})
    return BoxGeneration(detector, str(folder), **{"batch_size": 3, "num_workers": 0, **arguments})


class TestRun:
    def test_the_file_is_what_training_reads(self, folder: Path, tmp_path: Path) -> None:
        out = generation(folder).run(tmp_path / "boxes.json", draw=2)
        store = BoxStore(str(out))
        assert len(store) == 10 and not (tmp_path / "boxes.json.parts").exists()
        assert store.lookup("train/5.png").boxes.tolist() == [[0, 0, 25, 15]]
        assert not len(store.lookup("train/0.png").boxes)
        record = store.find("train/5.png")
        assert record is not None and record.size == (25, 15)
        drawn = sorted(path.name for path in (tmp_path / "boxes.json.drawn").iterdir())
        assert drawn == ["train_0.png.png", "train_1.png.png"]

    def test_pictures_of_records(self, folder: Path, tmp_path: Path) -> None:
        records = [{"image": "train/3.png"}, {"conversations": []}, {"image": ["train/1.png", "train/3.png"]}]
        (tmp_path / "data.json").write_text(json.dumps(records))
        run = generation(folder, data_path=str(tmp_path / "data.json"))
        assert run.keys == ["train/3.png", "train/1.png"]
        assert len(BoxStore(str(run.run(tmp_path / "boxes.json", limit=1)))) == 1

    def test_goes_on_where_it_was(self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Whole, "breaks_after", 6)
        with pytest.raises(KeyboardInterrupt):
            generation(folder).run(tmp_path / "boxes.json")
        (part,) = (tmp_path / "boxes.json.parts").glob("*.jsonl")
        assert len(part.read_text().splitlines()) == 6
        # a line that a kill cut off
        part.write_bytes(part.read_bytes()[:-10])
        monkeypatch.setattr(Whole, "breaks_after", 10**9)
        Whole.calls.clear()
        out = generation(folder).run(tmp_path / "boxes.json")
        assert sum(Whole.calls) == 5 and len(BoxStore(str(out))) == 10

    def test_a_broken_picture_is_told_and_the_rest_found(
        self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (folder / "train" / "4.png").write_bytes(b"no picture")
        out = generation(folder).run(tmp_path / "boxes.json")
        assert len(BoxStore(str(out))) == 9
        error = " ".join(capsys.readouterr().err.split())
        assert "4.png' does not decode" in error and "1 unreadable" in error


def source(kind: str, folder: Path, tmp_path: Path, name: Any = lambda path: path, count: int = 6) -> str:
    """The first pictures of `folder` and another use of the first one, as a source that holds them."""
    paths = [f"train/{number}.png" for number in range(count)] + ["train/0.png"]
    question = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A dog."}]
    records = [{"id": str(number), "image": path, "conversations": question} for number, path in enumerate(paths)]
    rows = as_rows(records, folder, [])
    for row in rows:
        del row["boxes"], row["labels"], row["scores"], row["width"], row["height"]
        row["images"][0]["path"] = name(row["images"][0]["path"])
    return write_source(kind, tmp_path / "source", rows)


class TestSources:
    @pytest.mark.parametrize("kind", ["parquet", "arrow folder", "webdataset"])
    @pytest.mark.parametrize("workers", [0, 2])
    def test_pictures_inside_the_data(self, kind: str, workers: int, folder: Path, tmp_path: Path) -> None:
        path = source(kind, folder, tmp_path)
        run = BoxGeneration({"type": Whole}, data_path=path, batch_size=2, num_workers=workers)
        out = run.run(tmp_path / "boxes.json")
        store = BoxStore(str(out))
        # save_to_disk keeps the last part of a path only
        name = "5.png" if kind == "arrow folder" else "train/5.png"
        assert len(store) == 6 and store.lookup(name).boxes.tolist() == [[0, 0, 25, 15]]
        # and training finds them by the records
        assert [len(boxes) for boxes in boxes_of(path, out)] == [0, 1, 1, 1, 1, 1, 0]

    def test_a_data_set_of_the_hub(self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = source("parquet folder", folder, tmp_path)
        found = locate(path)
        monkeypatch.setattr("xtuner.data.sources.locate.hub_files", lambda address: list(found.files))
        out = BoxGeneration({"type": Whole}, data_path="hf://owner/name:train", num_workers=0).run(tmp_path / "b.json")
        assert len(BoxStore(str(out))) == 6

    def test_pictures_without_names_are_known_by_their_places(self, folder: Path, tmp_path: Path) -> None:
        path = source("parquet", folder, tmp_path, name=lambda _: None)
        out = BoxGeneration({"type": Whole}, data_path=path, num_workers=0).run(tmp_path / "boxes.json")
        assert len(BoxStore(str(out))) == 7
        assert [len(boxes) for boxes in boxes_of(path, out)] == [0, 1, 1, 1, 1, 1, 0]

    def test_archives(self, folder: Path, tmp_path: Path) -> None:
        members = [(f"train/{number}.png", (folder / f"train/{number}.png").read_bytes()) for number in range(10)]
        write_tar(tmp_path / "images.tar", members)
        (tmp_path / "data.json").write_text(json.dumps([{"image": "train/3.png"}, {"images": ["train/9.png"]}]))
        run = generation(tmp_path / "images.tar", data_path=str(tmp_path / "data.json"))
        assert len(BoxStore(str(run.run(tmp_path / "boxes.json")))) == 2

    def test_one_name_for_different_pictures(
        self, folder: Path, tmp_path: Path, framework_log: list[logging.LogRecord]
    ) -> None:
        path = source(
            "parquet", folder, tmp_path, name=lambda path: "x.png" if path.endswith(("1.png", "2.png")) else path
        )
        out = BoxGeneration({"type": Whole}, data_path=path, num_workers=0).run(tmp_path / "boxes.json")
        assert "different pictures the same name (1 name, the first is 'x.png')" in framework_log[0].getMessage()
        found = boxes_of(path, out)
        assert len(BoxStore(str(out))) == 6 and [len(boxes) for boxes in found] == [0, 1, 1, 1, 1, 1, 0]
        assert found[1][0, 2] == 21 and found[2][0, 2] == 22

    def test_other_columns(self, folder: Path, tmp_path: Path) -> None:
        path = source("parquet folder", folder, tmp_path)
        with pytest.raises(XTunerError, match="has the columns 'id', 'images', 'conversations'"):
            BoxGeneration({"type": Whole}, data_path=path, data_columns={"image": "photo"})


def boxes_of(path: str, out: Any) -> list[np.ndarray]:
    """Returns the boxes that training finds for each record of `source`."""
    store = BoxStore(str(out))
    found = []
    for record in open_source(path).records():
        assert isinstance(record, Record)
        (image,) = as_list(record.value.get("image", record.value.get("images")))
        boxes = find_boxes(store, image, "", 1)
        assert boxes is not None
        found.append(boxes.found.boxes)
    return found


def as_list(value: Any) -> list[str]:
    return value if isinstance(value, list) else [value]


class TestMistakes:
    def test_parts_of_another_detector(self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Whole, "breaks_after", 3)
        with pytest.raises(KeyboardInterrupt):
            generation(folder).run(tmp_path / "boxes.json")
        with pytest.raises(XTunerError, match="of another detector or of other pictures"):
            generation(folder, detector={"type": Whole, "label": "other"}).run(tmp_path / "boxes.json")

    def test_a_start_that_failed_leaves_nothing_in_the_way(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Whole, "breaks_after", 0)
        with pytest.raises(KeyboardInterrupt):
            generation(folder).run(tmp_path / "boxes.json")
        monkeypatch.setattr(Whole, "breaks_after", 10**9)
        out = generation(folder, detector={"type": Whole, "label": "other"}).run(tmp_path / "boxes.json")
        assert {label for record in json.loads(Path(str(out)).read_text()) for label in record["labels"]} == {"other"}

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(XTunerError, match="does not exist"):
            generation(tmp_path / "absent")
        with pytest.raises(XTunerError, match="names no picture"):
            generation(tmp_path)
        with pytest.raises(XTunerError, match="does not exist: name --image-folder or --data"):
            BoxGeneration({"type": Whole})


class TestCommand:
    def options(self, tmp_path: Path, folder: Path) -> list[str]:
        (tmp_path / "names.txt").write_text("\n".join(NAMES))
        settings = {
            "detector_path": tiny_owlv2(tmp_path / "owlv2"),
            "vocabulary": tmp_path / "names.txt",
            "detector.threshold": 0.01,
            "detector.dtype": "float32",
        }
        words = ["--image-folder", str(folder), "--out", str(tmp_path / "boxes.json"), "--num-workers", "0"]
        return [*words, "--cfg-options", *(f"{key}={value}" for key, value in settings.items())]

    def test_owlv2(self, folder: Path, tmp_path: Path) -> None:
        assert main(["preprocess", "boxes", "--draw", "1", *self.options(tmp_path, folder)]) == 0
        records = json.loads((tmp_path / "boxes.json").read_text())
        assert len(records) == 10 and any(record["boxes"] for record in records)
        assert {label for record in records for label in record["labels"]} <= set(NAMES)

    def test_an_absent_checkpoint(self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        words = ["--image-folder", str(folder), "--out", str(tmp_path / "boxes.json")]
        command = ["preprocess", "boxes", *words, "--cfg-options", f"detector_path={tmp_path / 'absent'}"]
        assert main(command) == 1
        assert "download it and name its folder (detector_path)" in capsys.readouterr().err
        assert main(["preprocess", "boxes", "--config", "tiny_sft", *words]) == 1
        assert "has no box_generation" in capsys.readouterr().err

    @pytest.mark.slow
    @pytest.mark.multi_process
    def test_two_processes_killed_and_started_again(self, folder: Path, tmp_path: Path) -> None:
        """As on a cluster: killed with -9 in the middle, gone on by another number of processes."""
        code = (
            "import os, torch, sys; from torch import distributed; from mg_llava.detectors import BoxGeneration;"
            "from xtuner.engine.processes.environment import Collective;"
            "distributed.init_process_group('gloo') if 'RANK' in os.environ else None;"
            "g = BoxGeneration({'type': 'tests.mg_llava.detectors.test_generation.Whole', 'seconds': SECONDS}, FOLDER, "
            "batch_size=1,"
            " num_workers=0); g.run(OUT, collective=Collective())"
        )
        code = code.replace("FOLDER", repr(str(folder))).replace("OUT", repr(str(tmp_path / "boxes.json")))
        # the detector's node is compared on restart, so its pause comes from outside of it
        code = code.replace("SECONDS", "0.5")
        (tmp_path / "run.py").write_text(code.replace("; ", "\n").replace(";", "\n"))
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        launch = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc_per_node",
            "2",
            "--master_port",
            "0",
            "--standalone",
        ]
        first = subprocess.Popen([*launch, str(tmp_path / "run.py")], env=environment, start_new_session=True)
        parts = tmp_path / "boxes.json.parts"
        deadline = time.monotonic() + 120
        while sum(len(p.read_text().splitlines()) for p in parts.glob("*.jsonl")) < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
        standing = sum(len(p.read_text().splitlines()) for p in parts.glob("*.jsonl"))
        assert 3 <= standing < 10 and not (tmp_path / "boxes.json").exists()
        subprocess.run([sys.executable, str(tmp_path / "run.py")], env=environment, check=True)
        assert len(BoxStore(str(tmp_path / "boxes.json"))) == 10


class TestVideos:
    """Sampled frames of videos: a record a video, which training finds."""

    @pytest.fixture
    def videos(self, folder: Path) -> Path:
        write_clip(folder / "v" / "a.mp4", count=16)
        write_clip(folder / "v" / "b.mkv", count=3)
        write_frames(folder / "v" / "frames", count=4)
        (folder / "v" / "bad.mp4").write_bytes(b"no video")
        return folder

    def data(self, tmp_path: Path, *videos: str, picture: str | None = None) -> str:
        talk = [{"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": "A dog."}]
        records: list[dict[str, Any]] = [{"video": name, "conversations": talk} for name in videos]
        if picture:
            asked = [{**talk[0], "value": "<image>\nWhat?"}, talk[1]]
            records.append({"image": picture, "conversations": asked})
        (tmp_path / "data.json").write_text(json.dumps(records))
        return str(tmp_path / "data.json")

    @pytest.mark.parametrize("workers", [0, 2])
    def test_pictures_and_videos_of_records(
        self, videos: Path, tmp_path: Path, workers: int, capsys: pytest.CaptureFixture[str]
    ) -> None:
        names = ("v/a.mp4", "v/a.mp4#t=1,1.5", "v/b.mkv", "v/frames", "v/bad.mp4", "v/b.mkv#t=x", "v/b.mkv#t=8,9")
        path = self.data(tmp_path, *names, picture="train/5.png")
        run = generation(videos, data_path=path, frame_sampling={"num_frames": 2}, num_workers=workers)
        assert run.keys == ["train/5.png", "v/frames/1.png", "v/frames/4.png"]
        assert run.videos == ["v/a.mp4", "v/b.mkv", "v/bad.mp4"]
        store = BoxStore(str(run.run(tmp_path / "boxes.json", draw=1)))
        # of both ranges together: 0 and 15, 8 and 11
        frames = store.frames_of("v/a.mp4")
        assert [(record.frame, record.time) for record in frames] == [(0, 0.0), (8, 1.0), (11, 1.375), (15, 1.875)]
        assert frames[0].found.boxes.tolist() == [[0, 0, 32, 24]] and frames[0].size == (32, 24)
        assert [record.frame for record in store.frames_of("v/b.mkv")] == [0, 2]
        assert store.lookup("v/frames/4.png").labels == ("all",)
        error = " ".join(capsys.readouterr().err.split())
        assert "9 boxes in 3 pictures and 2 videos (6 frames), 0 without any, 1 unreadable" in error
        drawn = sorted(path.name for path in (tmp_path / "boxes.json.drawn").iterdir())
        assert drawn == ["train_5.png.png", *(f"v_a.mp4_frame{i}.png" for i in (0, 11, 15, 8))]

    def test_every_video_of_a_folder(self, videos: Path, tmp_path: Path) -> None:
        run = generation(videos, frame_sampling={"fps": 2, "max_frames": 3})
        assert run.keys == [] and run.videos == ["v/a.mp4", "v/b.mkv", "v/bad.mp4"]
        store = BoxStore(str(run.run(tmp_path / "boxes.json", limit=1)))
        assert [record.frame for record in store.frames_of("v/a.mp4")] == [0, 4, 12]

    def test_goes_on_where_it_was(self, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_clip(videos / "v" / "c.mp4", count=16)
        path = self.data(tmp_path, "v/a.mp4", "v/c.mp4")
        monkeypatch.setattr(Whole, "breaks_after", 10)
        with pytest.raises(KeyboardInterrupt):
            generation(videos, data_path=path, frame_sampling={}).run(tmp_path / "boxes.json")
        monkeypatch.setattr(Whole, "breaks_after", 10**9)
        Whole.calls.clear()
        other = generation(videos, data_path=path, frame_sampling={"num_frames": 3})
        with pytest.raises(XTunerError, match="holds boxes of another detector or of other pictures"):
            other.run(tmp_path / "boxes.json")
        out = generation(videos, data_path=path, frame_sampling={}).run(tmp_path / "boxes.json")
        # three at a time, the second video from its beginning
        assert Whole.calls == [3, 3, 2]
        assert [len(BoxStore(str(out)).frames_of(f"v/{name}.mp4")) for name in "ac"] == [8, 8]

    def test_command(self, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "whole.py").write_text(
            "from mg_llava.detectors import BoxGeneration\n"
            f"box_generation = dict(type=BoxGeneration, detector=dict(type='{Whole.__module__}.Whole'))\n"
        )
        path, out = self.data(tmp_path, "v/a.mp4"), tmp_path / "boxes.json"
        command = ["preprocess", "boxes", "--config", str(tmp_path / "whole.py"), "--image-folder", str(videos)]
        command += ["--data", path, "--out", str(out), "--num-workers", "0", "--num-frames", "2"]
        assert main(command) == 1
        assert "which frames of videos are taken is of use with --video" in capsys.readouterr().err
        assert main([*command, "--video"]) == 0
        assert [record.frame for record in BoxStore(str(out)).frames_of("v/a.mp4")] == [0, 15]
