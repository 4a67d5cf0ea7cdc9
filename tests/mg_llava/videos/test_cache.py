"""Kept frames: the same pictures at the same places, restartable, and what could not be read is counted."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mg_llava.data.dataset import MGLLaVADataset
from mg_llava.videos.cache import writing
from mg_llava.videos.cache.formats import FrameFormat
from mg_llava.videos.cache.reading import FrameCache
from mg_llava.videos.cache.writing import keep_frames
from mg_llava.videos.files import FrameFiles
from mg_llava.videos.open import open_video
from mg_llava.videos.sampling import FrameSampling
from tests.clips import write_animation, write_clip, write_frames
from tests.mg_llava.data.test_dataset import talk, world
from xtuner.cli import main
from xtuner.data.pictures.files import FolderPictures
from xtuner.errors import XTunerError

__all__ = ["world"]

ASK = "<video>\nWhat is this"
PNG = FrameFormat("png")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Videos of four kinds, and one that is none."""
    monkeypatch.setenv("XTUNER_CACHE", str(tmp_path / "cache"))
    videos = tmp_path / "videos"
    write_clip(videos / "a.mp4", count=31)
    write_clip(videos / "b.mkv", count=3)
    write_animation(videos / "c.gif", count=5)
    write_frames(videos / "frames", count=4)
    (videos / "bad.mp4").write_bytes(b"no video")
    return videos


def files(folder: Path, cached: Any = None) -> FrameFiles:
    return FrameFiles(FolderPictures(str(folder)), cached)


def place_texts(folder: Path, name: str, sampling: FrameSampling) -> list[str]:
    with open_video(str(folder / name)) as video:
        numbers = sampling.choose(video.times, video.duration).numbers
        return [str(video.place(number)._replace(video=name)) for number in numbers]


def pictures(found: FrameFiles, paths: list[str]) -> list[np.ndarray]:
    from mg_llava.pictures.open import open_picture

    return [np.asarray(picture) for picture in found.images(paths, open_picture)]


class TestKeeping:
    @pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.multi_process)])
    def test_png_is_what_is_decoded(self, folder: Path, tmp_path: Path, processes: int) -> None:
        rule = FrameSampling(num_frames=4)
        names = ["a.mp4", "b.mkv", "c.gif", "a.mp4", "frames", "bad.mp4", "none.mp4", "a.mp4#t=1,2", "b.mkv#t=9,10"]
        counts = keep_frames(names, files(folder), rule, tmp_path / "kept", PNG, processes)
        assert counts["videos"] == 3 and counts["frames"] == 7 + 3 + 4
        assert counts["unreadable videos"] == 2 and counts["ranges without frames"] == 1
        assert counts["folders of frames, which are pictures already"] == 1
        cache = pickle.loads(pickle.dumps(FrameCache(tmp_path / "kept")))
        assert len(cache) == counts["frames"]
        for name in ("a.mp4", "b.mkv", "c.gif"):
            paths = place_texts(folder, name, rule)
            assert all(map(cache.holds, paths))
            decoded, kept = pictures(files(folder), paths), pictures(files(tmp_path, cache), paths)
            assert all(map(np.array_equal, decoded, kept))
        assert cache.open(paths[0]).getvalue().startswith(b"\x89PNG")
        with pytest.raises(XTunerError, match="is not in .*kept': keep the frames again"):
            cache.open("video:other.mp4#frame=0,t=0.000000")

    def test_jpeg_is_near(self, folder: Path, tmp_path: Path) -> None:
        keep_frames(["a.mp4"], files(folder), FrameSampling(), tmp_path / "kept", num_proc=1)
        cache = FrameCache(tmp_path / "kept")
        paths = place_texts(folder, "a.mp4", FrameSampling())
        assert cache.open(paths[0]).getvalue().startswith(b"\xff\xd8\xff")
        decoded, kept = pictures(files(folder), paths), pictures(files(tmp_path, cache), paths)
        errors = [np.abs(one.astype(int) - other).mean() for one, other in zip(decoded, kept, strict=True)]
        # one colour and a white square: measured at most 0.7
        assert max(errors) < 2

    def test_an_earlier_run_is_used_again(self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        opened: list[str] = []
        real = open_video
        monkeypatch.setattr(
            "mg_llava.videos.cache.writing.open_video",
            lambda found, name: opened.append(name) or real(found, name=name),
        )

        def keep(names: list[str]) -> dict[str, int]:
            opened.clear()
            return keep_frames(names, files(folder), FrameSampling(), tmp_path / "kept", PNG, 1)

        first = keep(["a.mp4", "b.mkv"])
        assert opened == ["a.mp4", "b.mkv"]
        assert keep(["a.mp4", "b.mkv"]) == first and opened == []
        # more of them, and one that was replaced
        write_clip(folder / "b.mkv", count=5)
        assert keep(["a.mp4", "b.mkv", "c.gif"])["frames"] == 8 + 5 + 5
        assert opened == ["b.mkv", "c.gif"]
        # a file that was cut off later is made anew
        index = json.loads((tmp_path / "kept" / "frames.json").read_text())
        shard = tmp_path / "kept" / index["shards"][0]["file"]
        shard.write_bytes(shard.read_bytes()[:-1])
        with pytest.raises(XTunerError, match=r"incomplete \(frames-.*expected .*\): copy the folder again, or run"):
            FrameCache(tmp_path / "kept")
        keep(["a.mp4", "b.mkv", "c.gif"])
        assert opened == ["a.mp4"] and len(FrameCache(tmp_path / "kept")) == 18

    def test_a_killed_run_goes_on(self, folder: Path, tmp_path: Path) -> None:
        for number in range(6):
            write_clip(folder / f"{number}.mp4", count=8)
        kept, names = tmp_path / "kept", [f"{number}.mp4" for number in range(6)]

        def slow(found: Any, name: str) -> Any:
            # the third video never ends
            time.sleep(600 if name == "2.mp4" else 0)
            return open_video(found, name=name)

        def work() -> None:
            writing.open_video = slow  # type: ignore[assignment]
            keep_frames(names, files(folder), FrameSampling(), kept, num_proc=1)

        run = multiprocessing.get_context("fork").Process(target=work)
        run.start()
        try:
            deadline = time.monotonic() + 120
            while not (len(list(kept.glob("frames-*.json"))) == 2 and list(kept.glob(".frames-*"))):
                assert run.is_alive() and time.monotonic() < deadline
                time.sleep(0.05)
        finally:
            run.kill()
            run.join()
        with pytest.raises(XTunerError, match="holds no complete frames: run `xtuner preprocess video` to its end"):
            FrameCache(kept)
        before = {path: path.stat().st_mtime_ns for path in kept.glob("frames-*.arrow")}
        assert len(before) == 2
        counts = keep_frames(names, files(folder), FrameSampling(), kept, num_proc=1)
        assert counts["videos"] == 6 and counts["frames"] == 48 and len(FrameCache(kept)) == 48
        assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())
        assert not list(kept.glob(".*"))

    def test_refusals(self, folder: Path, tmp_path: Path) -> None:
        keep_frames(["b.mkv"], files(folder), FrameSampling(), tmp_path / "kept", PNG, 1)
        with pytest.raises(XTunerError, match=r"holds frames by other settings \(max_frames=64.*name=png.*, now "):
            keep_frames(["b.mkv"], files(folder), FrameSampling(), tmp_path / "kept", num_proc=1)
        with pytest.raises(XTunerError, match="exists and holds no frames of videos"):
            keep_frames(["b.mkv"], files(folder), FrameSampling(), folder)
        with pytest.raises(XTunerError, match="quality=0: expected a whole number from 1 to 100"):
            FrameFormat("jpeg", 0)
        with pytest.raises(XTunerError, match="kept as jpeg or png, not as 'gif'"):
            FrameFormat("gif")  # type: ignore[arg-type]
        with pytest.raises(XTunerError, match="none' .setting frame_cache. does not exist: run"):
            FrameCache(tmp_path / "none")
        index = tmp_path / "kept" / "frames.json"
        index.write_text(json.dumps({**json.loads(index.read_text()), "version": 99}))
        with pytest.raises(XTunerError, match="another version .format 99, expected 1."):
            FrameCache(tmp_path / "kept")


class TestTraining:
    def node(self, world: Any, tmp_path: Path, **changes: Any) -> dict[str, Any]:
        write_clip(tmp_path / "v" / "long.mp4", count=16)
        write_clip(tmp_path / "v" / "short.mkv", count=3)
        names = ["v/long.mp4", "v/short.mkv", "v/long.mp4#t=1,1.5"]
        records: list[dict[str, Any]] = [
            {"id": str(i), "video": name, "conversations": talk(ASK)} for i, name in enumerate(names)
        ]
        records.append({"id": "picture", "image": "a.png", "conversations": talk("<image>\nWhat is this")})
        return world(records, box_json_path=None, **changes)

    def test_the_same_samples_without_the_videos(self, world: Any, tmp_path: Path) -> None:
        node = self.node(world, tmp_path)
        counts = MGLLaVADataset.keep_frames(node, str(tmp_path / "kept"), "png", 95, 1)
        # the part of the first video has frames 8 to 11, of which the whole has 8 and 10
        assert (counts["videos"], counts["frames"]) == (2, 8 + 3 + 2)
        plain = MGLLaVADataset(**node)
        cached = MGLLaVADataset(**node, frame_cache=str(tmp_path / "kept"))
        prepared = str(plain.samples.part(0).folder)
        wanted = [plain[number] for number in range(4)]
        for path in (tmp_path / "v").iterdir():
            path.unlink()
        alone = MGLLaVADataset(
            **{**node, "offline_processed_text_folder": prepared, "data_path": None},
            frame_cache=str(tmp_path / "kept"),
        )
        for dataset in (cached, alone):
            for number, sample in enumerate(wanted):
                assert np.array_equal(dataset[number]["pixel_values"], sample["pixel_values"])
                assert np.array_equal(dataset[number]["input_ids"], sample["input_ids"])
        assert len(alone.draw(1)) == 3

    def test_check_reads_them(self, world: Any, tmp_path: Path) -> None:
        node = {**self.node(world, tmp_path), "frame_cache": str(tmp_path / "kept")}
        assert MGLLaVADataset.check_records(node).problems[0].startswith("pictures: the folder of frames")
        MGLLaVADataset.keep_frames(node, str(tmp_path / "kept"), "jpeg", 90, 1)
        assert MGLLaVADataset.check_records(node).problems == []
        other = {**node, "frame_sampling": FrameSampling(num_frames=2)}
        (problem,) = MGLLaVADataset.check_records(other).problems
        assert problem.startswith("kept frames: ") and "sampled by another rule: num_frames was None, now 2" in problem
        with pytest.raises(XTunerError, match="were sampled by another rule"):
            MGLLaVADataset(**other)

    def test_frames_that_are_not_kept_are_decoded_and_told(
        self, world: Any, tmp_path: Path, framework_log: Any
    ) -> None:
        node = self.node(world, tmp_path)
        short = {**node, "data_path": str(tmp_path / "short.json")}
        record = {"id": "1", "video": "v/short.mkv", "conversations": talk(ASK)}
        (tmp_path / "short.json").write_text(json.dumps([record]))
        MGLLaVADataset.keep_frames(short, str(tmp_path / "kept"), "png", 95, 1)
        dataset = MGLLaVADataset(**node, frame_cache=str(tmp_path / "kept"))
        assert np.array_equal(dataset[0]["pixel_values"], MGLLaVADataset(**node)[0]["pixel_values"])
        told = [record.getMessage() for record in framework_log if "are decoded" in record.getMessage()]
        assert len(told) == 1 and told[0].startswith("12 of 16 pictures and frames that were looked for")

    def test_a_mixture_has_numbered_folders(self, world: Any, tmp_path: Path) -> None:
        node = self.node(world, tmp_path)
        (tmp_path / "text.json").write_text(json.dumps([{"id": "t", "conversations": talk("What is this")}]))
        mixed = {**node, "data_path": [str(tmp_path / "text.json"), node["data_path"]]}
        MGLLaVADataset.keep_frames(mixed, str(tmp_path / "kept"), "png", 95, 1)
        dataset = MGLLaVADataset(**mixed, frame_cache=str(tmp_path / "kept"))
        assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["000", "001"]
        assert [len(files.cached) for files in dataset.samples.files] == [0, 13]  # type: ignore[arg-type]
        assert np.array_equal(dataset[1]["pixel_values"], MGLLaVADataset(**node)[0]["pixel_values"])


class TestCommand:
    def test_records_alone(self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        records = [{"video": name, "conversations": talk(ASK)} for name in ("a.mp4", "bad.mp4")]
        (tmp_path / "data.json").write_text(json.dumps(records))
        command = ["preprocess", "video", "--data", str(tmp_path / "data.json"), "--image-folder", str(folder)]
        options = ["--format", "png", "--num-proc", "1", "--cfg-options", "frame_sampling.num_frames=3"]
        assert main([*command, "--out", str(tmp_path / "kept"), *options]) == 0
        assert len(FrameCache(tmp_path / "kept")) == 3
        error = " ".join(capsys.readouterr().err.split())
        assert "bad.mp4' is no MP4" in error and "3 frames of 1 video, 1 unreadable video;" in error
        assert f"set frame_cache='{tmp_path / 'kept'}'" in error

    def test_nothing_named(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["preprocess", "video", "--out", str(tmp_path / "kept")]) == 1
        assert "no videos are named: pass --config CONFIG, or --data RECORDS" in capsys.readouterr().err
        (tmp_path / "data.json").write_text(json.dumps([{"conversations": talk("What is this")}]))
        assert main(["preprocess", "video", "--data", str(tmp_path / "data.json"), "--out", str(tmp_path / "k")]) == 1
        assert "the records name no videos" in capsys.readouterr().err
