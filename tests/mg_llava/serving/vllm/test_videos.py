"""Videos with frames and boxes in requests to vLLM; nothing here needs vLLM."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mg_llava.inference.prompts import as_picture_boxes
from mg_llava.serving.vllm.videos import BoxedVideo, kept_video_name, read_videos, split_said, with_said
from mg_llava.videos import FrameSampling, read_frames
from tests.clips import frame_picture, number_of, write_clip
from xtuner.errors import SampleError, XTunerError

RULE = FrameSampling(num_frames=4)
FRAMES = [Image.fromarray(frame_picture(number)) for number in range(3)]
BOX = [[2.0, 3.0, 20.0, 15.0]]


@dataclass
class Fetched:
    """As vLLM's loader returns a file."""

    media: Any
    original_bytes: bytes


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_clip(tmp_path_factory.mktemp("clip") / "a.mp4", count=16).read_bytes()


def shown(video: BoxedVideo) -> list[int]:
    return [number_of(picture) for picture in video.frames(RULE).pictures]


class TestForms:
    def test_files_follow_the_rule_and_frames_are_all_shown(self, file: bytes) -> None:
        array = np.stack([frame_picture(number) for number in range(3)])
        for given in (file, Fetched(None, file), {"video": file}, BoxedVideo(file)):
            assert shown(BoxedVideo.read(given)) == [0, 5, 10, 15]
        for frames in (FRAMES, tuple(FRAMES), array, (array, {"fps": 2})):
            assert shown(BoxedVideo.read(frames)) == [0, 1, 2]
        assert shown(BoxedVideo.read({"video": file, "frames": [3, 7, 7]})) == [3, 7, 7]

    def test_one_or_several(self, file: bytes) -> None:
        array = np.stack([frame_picture(number) for number in range(3)])
        assert [len(read_videos(given)) for given in (file, FRAMES, (array, {"fps": 2}), [file, file], [FRAMES])] == [
            *(1, 1, 1),
            *(2, 1),
        ]
        assert [len(read_videos(given)) for given in ([(array, {}), (array, {})], array, [None], None)] == [2, 1, 1, 1]

    def test_boxes_of_each_frame(self, file: bytes) -> None:
        boxed = BoxedVideo.read({"video": file, "boxes": [None, BOX, None, {"boxes": BOX, "labels": ["a"]}]})
        found = boxed.frames(RULE).found
        assert [None if one is None else one.boxes.tolist() for one in found] == [None, BOX, None, BOX]
        near = {"frames": [{"time": 0.62, "boxes": BOX, "labels": ["a"], "scores": [1]}]}
        again = BoxedVideo.read({"video": file, "boxes": near}).frames(RULE).found
        assert [one is None for one in again] == [True, False, True, True]

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ("/etc/passwd", "a video is a str: expected the bytes of a file"),
            ({"video": "http://a.b/c.mp4"}, "a video is a str"),
            ({"clip": b""}, "a video has the fields"),
            ({"video": b"", "crop": 1}, "a video has the fields"),
            (np.zeros((2, 3, 4, 3), np.float32), "a video is a ndarray"),
            (3, "a video is a int"),
            ([], "a video is a list"),
            ({"video": FRAMES, "boxes": 3}, "the boxes of a video are a int"),
            ({"video": FRAMES, "boxes": [[[0, 0, float("nan"), 1]]]}, "not finite"),
            ({"video": FRAMES, "frames": [2, 1]}, "expected 1 to 1,024 numbers from 0, rising"),
            ({"video": FRAMES, "frames": []}, "expected 1 to 1,024 numbers"),
            ({"video": FRAMES, "frames": [-1]}, "expected 1 to 1,024 numbers"),
            ({"video": FRAMES, "frames": "ab"}, "expected 1 to 1,024 numbers"),
        ],
    )
    def test_refused(self, given: Any, message: str) -> None:
        with pytest.raises(XTunerError, match=message):
            BoxedVideo.read(given)

    def test_refused_when_they_are_read(self, file: bytes) -> None:
        for given, message in (
            ({"video": file, "boxes": [None]}, "1 lists of boxes for 4 frames"),
            ({"video": file, "boxes": [None, [[50, 50, 60, 60]], None, None]}, "lie outside their picture"),
            ({"video": file, "frames": [16]}, "the video has 16 frames, but number 16 is asked for"),
        ):
            with pytest.raises(XTunerError, match=message):
                BoxedVideo.read(given).frames(RULE)
        with pytest.raises(SampleError, match="is no MP4"):
            BoxedVideo.read(b"no video").frames(RULE)


class TestNames:
    def test_frames_and_boxes_tell_videos_apart(self, file: bytes) -> None:
        videos = [
            BoxedVideo.read(given)
            for given in (
                file,
                {"video": file, "frames": [0, 1]},
                {"video": file, "boxes": [None, BOX, None, None]},
                {"video": file, "boxes": {"frames": [{"index": 0, "boxes": np.array(BOX)}]}},
                FRAMES,
                read_frames(io.BytesIO(file)).with_boxes([as_picture_boxes(BOX), *[None] * 7]),
            )
        ]
        assert len({video.said for video in videos}) == 5
        assert videos[0].cache_key["video"] == file and videos[4].cache_key["video"] == FRAMES
        names = [kept_video_name(video, "clip") for video in videos]
        assert len(set(names)) == 5 and kept_video_name(videos[0], None) is None


class TestUrls:
    def test_there_and_back(self, file: bytes) -> None:
        frames = read_frames(io.BytesIO(file), RULE)
        url = "data:video/mp4;base64," + base64.b64encode(file).decode()
        for boxes in ((), [None, as_picture_boxes({"boxes": BOX, "labels": ["a & b #1"]}), None, None]):
            address, said = split_said(with_said(url, frames.with_boxes(boxes) if boxes else frames))
            assert address == url and said.numbers == (0, 5, 10, 15) and said.source is None
            again = replace(said, source=file).frames(FrameSampling(fps=1))
            assert [number_of(picture) for picture in again.pictures] == [0, 5, 10, 15]
            found = [None if one is None else (one.boxes.tolist(), one.labels) for one in again.found]
            assert found == ([None, (BOX, ("a & b #1",)), None, None] if boxes else [])

    def test_a_range(self, file: bytes) -> None:
        address, said = split_said("http://a.b/c.mp4#t=1,1.5")
        assert address == "http://a.b/c.mp4"
        assert shown(replace(said, source=file)) == [8, 9, 10, 11]
        assert split_said("http://a.b/c.mp4")[1] == BoxedVideo(None)

    @pytest.mark.parametrize(
        ("fragment", "message"),
        [
            ("t=x", "the video's URL says t='x': expected seconds"),
            ("frames=1,a", "expected 1 to 1,024 numbers"),
            ("boxes=[[", "the URL's boxes are no JSON"),
            ("boxes=3", "the boxes of a video are a int"),
            ("crop=1", "the video's URL says 'crop' behind '#': expected t, frames, boxes"),
        ],
    )
    def test_refused(self, fragment: str, message: str) -> None:
        with pytest.raises(XTunerError, match=message):
            split_said(f"data:video/mp4;base64,AAAA#{fragment}")
