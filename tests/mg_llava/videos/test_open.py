"""Video files of each kind: the right frames, seeking, and one sentence for what is no video."""

from __future__ import annotations

import io
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mg_llava.videos import budget
from mg_llava.videos.open import open_video
from mg_llava.videos.sampling import FrameSampling
from mg_llava.videos.seeking import FrameSeeker
from mg_llava.videos.shown import read_frames
from tests.clips import frame_picture, number_of, write_animation, write_clip, write_frames
from xtuner.errors import SampleError, XTunerError

EIGHT = [0, 4, 8, 12, 17, 21, 25, 30]
"""Of 31 frames, by the published rule."""


QUIET = {"x265-params": "log-level=none"}


def numbers(path: Any, **arguments: Any) -> list[int]:
    return [number_of(picture) for picture in read_frames(path, FrameSampling(**arguments)).pictures]


class TestKinds:
    @pytest.mark.parametrize(
        ("name", "codec", "options"),
        [
            ("a.mp4", "libx264", {}),
            ("short.mp4", "libx264", {"g": "4", "bf": "2"}),
            ("plain.mp4", "mpeg4", {}),
            ("hevc.mp4", "libx265", QUIET),
            ("a.mov", "mpeg4", {}),
            ("a.mkv", "libx264", {"g": "10"}),
            ("a.webm", "libvpx-vp9", {}),
            ("a.avi", "mpeg4", {}),
            ("b.avi", "libx264", {"g": "5", "bf": "0"}),
        ],
    )
    def test_containers(self, tmp_path: Path, name: str, codec: str, options: dict[str, str]) -> None:
        path = write_clip(tmp_path / name, count=31, codec=codec, **options)
        shown = read_frames(str(path))
        assert [place.number for place in shown.places] == EIGHT
        assert [number_of(picture) for picture in shown.pictures] == EIGHT
        assert shown.pictures[0].size == (32, 24) and shown.pictures[0].mode == "RGB"
        assert shown.duration == pytest.approx(31 / 8, abs=0.15)

    @pytest.mark.parametrize("name", ["a.gif", "a.webp"])
    def test_animations(self, tmp_path: Path, name: str) -> None:
        path = write_animation(tmp_path / name, count=31)
        assert numbers(path) == EIGHT
        assert numbers(path, fps=5) == list(range(0, 31, 2))

    def test_a_folder_of_frames(self, tmp_path: Path) -> None:
        folder = write_frames(tmp_path / "frames", count=12)
        assert numbers(folder, num_frames=12) == list(range(12))
        assert numbers(folder, fps=0.5, start=2) == [2, 4, 6, 8, 10]

    def test_bytes(self, tmp_path: Path) -> None:
        content = write_clip(tmp_path / "a.mp4", count=31).read_bytes()
        assert numbers(io.BytesIO(content)) == EIGHT

    def test_a_part_of_a_video(self, tmp_path: Path) -> None:
        path = write_clip(tmp_path / "a.mp4", count=31)
        assert numbers(f"{path}#t=1,2") == list(range(8, 16))

    def test_variable_frame_rate(self, tmp_path: Path) -> None:
        times = [0, 0.1, 0.2, 0.3, 1, 2, 3, 4]
        path = write_clip(tmp_path / "a.mp4", count=8, times=times)
        assert numbers(path, fps=1) == [0, 4, 5, 6, 7]
        assert numbers(path, num_frames=5) == [0, 4, 5, 6, 7]
        assert numbers(path, num_frames=5, repeat=True) == [0, 1, 3, 5, 7]

    def test_sound_is_left_alone(self, tmp_path: Path) -> None:
        path = write_clip(tmp_path / "a.mp4", count=31, sound=True)
        assert numbers(path) == EIGHT

    def test_the_same_without_a_list(self, tmp_path: Path) -> None:
        path = write_clip(tmp_path / "a.mkv", count=31)
        with open_video(path) as video:
            places = [video.place(number) for number in range(31)]
        with open_video(path, listed=False) as video:
            assert [number_of(picture) for picture in video.frames(places)] == list(range(31))
            # backwards, and one several times
            again = [places[20], places[20], places[3], places[30]]
            assert [number_of(picture) for picture in video.frames(again)] == [20, 20, 3, 30]


class TestWhatIsShown:
    def test_a_picture_and_a_video_of_it_are_alike(self, tmp_path: Path) -> None:
        path = write_clip(tmp_path / "a.mkv", count=1, codec="ffv1", pixels="bgr0")
        (picture,) = read_frames(path).pictures
        assert np.array_equal(np.asarray(picture), frame_picture(0))

    @pytest.mark.parametrize("rotation", [90, 180, 270])
    def test_rotation(self, tmp_path: Path, rotation: int) -> None:
        path = write_clip(tmp_path / "a.mp4", count=2, rotation=rotation, size=(64, 32))
        picture = read_frames(path).pictures[0]
        # the file asks for a turn against the clock, as ffmpeg's own programs do it
        upright = Image.fromarray(frame_picture(0, (64, 32))).rotate(rotation, expand=True)
        assert picture.size == upright.size
        corners = [np.asarray(one).mean(axis=2)[[2, 2, -3, -3], [2, -3, 2, -3]] > 200 for one in (picture, upright)]
        assert corners[0].tolist() == corners[1].tolist()

    def test_pixels_that_are_no_squares(self, tmp_path: Path) -> None:
        wide = write_clip(tmp_path / "a.mp4", count=2, aspect=Fraction(2, 1))
        assert read_frames(wide).pictures[0].size == (64, 24)
        tall = write_clip(tmp_path / "b.mkv", count=2, aspect=Fraction(1, 2))
        assert read_frames(tall).pictures[0].size == (32, 48)

    def test_ten_bits(self, tmp_path: Path) -> None:
        path = write_clip(tmp_path / "a.mp4", count=31, codec="libx265", pixels="yuv420p10le", **QUIET)
        assert numbers(path) == EIGHT

    @pytest.mark.parametrize("transfer", ["smpte2084", "arib-std-b67"])
    def test_hdr_is_tone_mapped_and_said_once(self, tmp_path: Path, framework_log: Any, transfer: str) -> None:
        tags = f"log-level=none:colorprim=bt2020:transfer={transfer}:colormatrix=bt2020nc"
        path = write_clip(tmp_path / "a.mp4", count=3, codec="libx265", pixels="yuv420p10le", **{"x265-params": tags})
        picture = np.asarray(read_frames(path).pictures[0]).astype(int)
        white = picture[2, 2]
        # grey stays grey, and the brightest is white without being cut
        assert white.min() > 240 and np.ptp(white) <= 2
        assert picture[-3, -3].sum() < white.sum()
        assert len([record for record in framework_log if "is HDR" in record.getMessage()]) == 1


class TestSeeking:
    def test_only_what_is_needed_is_decoded(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = write_clip(tmp_path / "a.mp4", count=240, fps=8, g="8", bf="0", sc_threshold="0")
        taken: list[int] = []
        monkeypatch.setattr(budget.DecodingBudget, "take", lambda *_: taken.append(1))
        assert len(read_frames(path).pictures) == 8
        # at most a key frame's distance for each of the eight
        assert 8 <= len(taken) <= 8 * 8

    def test_neighbours_are_decoded_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = write_clip(tmp_path / "a.mp4", count=31, g="31", bf="0")
        taken: list[int] = []
        monkeypatch.setattr(budget.DecodingBudget, "take", lambda *_: taken.append(1))
        assert numbers(path, num_frames=31) == list(range(31))
        assert len(taken) <= 32

    def test_frames_that_nothing_refers_to_are_left_out(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = write_clip(tmp_path / "a.mp4", count=31, g="31", bf="3", sc_threshold="0")
        taken: list[int] = []
        monkeypatch.setattr(budget.DecodingBudget, "take", lambda *_: taken.append(1))
        assert numbers(path, start=3.4) == [27, 28, 29, 30]
        assert len(taken) < 25

    def test_the_same_pixels_as_decoding_all(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        generator = np.random.default_rng(0)
        noise = [generator.integers(0, 256, (48, 64, 3), dtype=np.uint8) for _ in range(4)]
        monkeypatch.setattr("tests.clips.frame_picture", lambda number, size: noise[number % 4] // (1 + number % 3))
        path = write_clip(tmp_path / "a.mp4", count=40, size=(64, 48), g="12", bf="3")
        with open_video(path) as video:
            every = list(video.frames([video.place(number) for number in range(40)]))
        shown = read_frames(path, FrameSampling(num_frames=7))
        for place, picture in zip(shown.places, shown.pictures, strict=True):
            assert np.array_equal(np.asarray(picture), np.asarray(every[place.number]))
        monkeypatch.setattr(FrameSeeker, "_may_skip", lambda *_: False)
        plain = read_frames(path, FrameSampling(num_frames=7))
        assert all(map(np.array_equal, plain.pictures, shown.pictures))


class TestFaults:
    """One sentence each, and nothing hangs."""

    def refused(self, source: Any, kind: str, found: str, **arguments: Any) -> None:
        with pytest.raises(SampleError, match=found) as caught:
            read_frames(source, **arguments)
        assert caught.value.kind == kind
        assert "\n" not in str(caught.value)

    def test_missing_and_no_file(self, tmp_path: Path) -> None:
        self.refused(str(tmp_path / "a.mp4"), "missing video", "does not exist: check image_folder and .* 'video'")
        os.mkfifo(tmp_path / "b.mp4")
        self.refused(str(tmp_path / "b.mp4"), "video does not decode", "is a FIFO: expected a file")
        self.refused("/dev/zero", "video does not decode", "is a device or socket")

    def test_other_files(self, tmp_path: Path) -> None:
        for name, content, found in (
            ("empty.mp4", b"", "the file is empty, 0 bytes"),
            ("text.mp4", b"#EXTM3U\nhttp://localhost/x.ts\n", "it is no file of these"),
        ):
            (tmp_path / name).write_bytes(content)
            self.refused(str(tmp_path / name), "video does not decode", found)
        Image.new("RGB", (8, 8)).save(tmp_path / "picture.jpg")
        (tmp_path / "picture.jpg").rename(tmp_path / "picture.mp4")
        self.refused(str(tmp_path / "picture.mp4"), "video does not decode", "a JPEG picture.*: write it as 'image'")

    @pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.97])
    @pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi"])
    def test_truncated(self, tmp_path: Path, name: str, share: float) -> None:
        content = write_clip(tmp_path / name, count=200, size=(64, 48), codec="mpeg4").read_bytes()
        (tmp_path / name).write_bytes(content[: int(len(content) * share)])
        try:
            shown = read_frames(str(tmp_path / name))
        except SampleError as error:
            assert error.kind in ("video does not decode", "video without frames")
            assert "\n" not in str(error) and name in str(error)
        else:
            # what has no table at its end plays as far as it goes
            assert name != "a.mp4" and 1 <= len(shown.pictures) <= 8

    def test_cut_off_behind_its_table(self, tmp_path: Path) -> None:
        path = write_clip(tmp_path / "a.mp4", count=200, size=(64, 48), codec="mpeg4")
        content = self.with_table_first(path)
        (tmp_path / "b.mp4").write_bytes(content[: len(content) * 2 // 3])
        self.refused(str(tmp_path / "b.mp4"), "video does not decode", "cut off|damaged")

    def with_table_first(self, path: Path) -> bytes:
        import av

        target = path.with_name("first.mp4")
        with av.open(str(path)) as source, av.open(str(target), "w", options={"movflags": "faststart"}) as out:
            stream = out.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(source.streams.video[0]):
                if packet.dts is not None:
                    packet.stream = stream
                    out.mux(packet)
        return target.read_bytes()

    def test_only_sound(self, tmp_path: Path) -> None:
        import av

        with av.open(str(tmp_path / "a.mp4"), "w") as container:
            stream: Any = container.add_stream("aac", rate=8000)
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            silence.sample_rate = 8000
            container.mux(stream.encode(silence))
            container.mux(stream.encode(None))
        self.refused(str(tmp_path / "a.mp4"), "video does not decode", "has no video stream, only sound or text")

    @pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi"])
    def test_a_stream_without_a_frame(self, tmp_path: Path, name: str) -> None:
        import av

        with av.open(str(tmp_path / name), "w") as container:
            stream: Any = container.add_stream("mpeg4", rate=8)
            stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
            container.start_encoding()
        # some muxers leave out all that is not needed for no frame at all
        with pytest.raises(SampleError, match="holds no frames|no video stream|cannot be opened") as caught:
            read_frames(str(tmp_path / name))
        assert name in str(caught.value) and "\n" not in str(caught.value)

    def test_an_empty_folder(self, tmp_path: Path) -> None:
        self.refused(str(tmp_path), "video without frames", "is a folder without pictures")

    def test_frames_too_large(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = write_clip(tmp_path / "a.mp4", count=2, size=(64, 48))
        with pytest.raises(XTunerError, match="frames of 64 x 48 = 0.0 megapixels, but at most 0.0 are allowed"):
            read_frames(path, max_pixels=1000)
        monkeypatch.setattr(budget, "MAX_MEMORY", 50_000)
        self.refused(path, "video too large", "decoding them takes about 0.0 GB")

    def test_limits_let_8k_pass_and_no_more(self) -> None:
        budget.check_frame_size("the video", (7680, 4320))
        with pytest.raises(SampleError, match="has frames of 15360 x 8640 pixels"):
            budget.check_frame_size("the video", (15360, 8640))

    def test_key_frames_too_far_apart(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = write_clip(tmp_path / "a.mp4", count=31, g="31", bf="0")
        monkeypatch.setattr(budget, "MOST_DECODED", 10)
        self.refused(path, "video too long", "key frames are too far apart")

    def test_too_many_frames(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = write_clip(tmp_path / "a.mp4", count=31)
        monkeypatch.setattr(budget, "MOST_FRAMES", 10)
        self.refused(path, "video too long", "more than 10 frames")

    def test_ten_hours(self, tmp_path: Path) -> None:
        path = write_clip(tmp_path / "a.mkv", count=31, times=[number * 1200.0 for number in range(31)])
        shown = read_frames(path)
        assert [number_of(picture) for picture in shown.pictures] == EIGHT
        assert shown.places[-1].time == pytest.approx(36_000)

    @pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi", "a.gif", "a.webp"])
    def test_many_flipped_bytes(self, tmp_path: Path, name: str) -> None:
        write = write_animation if name.endswith(("gif", "webp")) else write_clip
        content = write(tmp_path / name, count=12).read_bytes()
        generator = np.random.default_rng(0)
        for _ in range(60):
            damaged = np.frombuffer(content, np.uint8).copy()
            places = generator.integers(0, len(damaged), 1 + generator.integers(0, 12))
            damaged[places] = generator.integers(0, 256, len(places))
            try:
                shown = read_frames(io.BytesIO(damaged.tobytes()), max_pixels=1_000_000)
                assert all(picture.mode == "RGB" for picture in shown.pictures)
            except XTunerError as error:
                assert "\n" not in str(error)
