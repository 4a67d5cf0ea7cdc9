"""Which frames are taken: the published rule by hand, rates, ranges, variable frame rates."""

from __future__ import annotations

import numpy as np
import pytest

from mg_llava.videos.sampling import FrameSampling, is_constant
from xtuner.errors import SampleError, XTunerError

PUBLISHED = FrameSampling(num_frames=8, repeat=True)


def even(count: int, fps: float = 25) -> np.ndarray:
    return np.arange(count) / fps


class TestPublishedRule:
    @pytest.mark.parametrize(
        ("count", "expected"),
        [
            (1, [0, 0, 0, 0, 0, 0, 0, 0]),
            (2, [0, 0, 0, 0, 0, 0, 0, 1]),
            (3, [0, 0, 0, 0, 1, 1, 1, 2]),
            (7, [0, 0, 1, 2, 3, 4, 5, 6]),
            (8, [0, 1, 2, 3, 4, 5, 6, 7]),
            (9, [0, 1, 2, 3, 4, 5, 6, 8]),
            (15, [0, 2, 4, 6, 8, 10, 12, 14]),
            (16, [0, 2, 4, 6, 8, 10, 12, 15]),
            (100, [0, 14, 28, 42, 56, 70, 84, 99]),
            (300, [0, 42, 85, 128, 170, 213, 256, 299]),
            (1000, [0, 142, 285, 428, 570, 713, 856, 999]),
        ],
    )
    def test_hand_made(self, count: int, expected: list[int]) -> None:
        assert PUBLISHED.choose(even(count)).numbers == expected

    def test_every_length_up_to_a_thousand(self) -> None:
        for count in range(1, 1001):
            # whole-number arithmetic: i (n - 1) / 7, rounded down
            expected = [place * (count - 1) // 7 for place in range(8)]
            assert PUBLISHED.choose(even(count)).numbers == expected, count
            once = FrameSampling(num_frames=8).choose(even(count))
            assert once.numbers == sorted(set(expected)), count
            assert once.repeats == 8 - len(set(expected))

    def test_the_default_is_eight(self) -> None:
        assert FrameSampling().choose(even(50)).numbers == FrameSampling(num_frames=8).choose(even(50)).numbers

    def test_milliseconds_change_nothing(self) -> None:
        for count in (8, 50, 99, 240):
            rounded = np.round(even(count, 29.97), 3)
            assert FrameSampling().choose(rounded).numbers == FrameSampling().choose(even(count)).numbers


class TestTime:
    def test_a_variable_rate_counts_by_time(self) -> None:
        # 90 frames in the first second, then one a second
        times = np.concatenate([np.arange(90) / 90, np.arange(1, 8)])
        assert not is_constant(times)
        assert FrameSampling(num_frames=8).choose(times).numbers == [0, 90, 91, 92, 93, 94, 95, 96]
        # by number, as published, where asked for
        assert PUBLISHED.choose(times).numbers == [0, 13, 27, 41, 54, 68, 82, 96]

    def test_frames_per_second(self) -> None:
        assert FrameSampling(fps=1).choose(even(100)).numbers == [0, 25, 50, 75]
        assert FrameSampling(fps=2, max_frames=4).choose(even(250)).numbers == [0, 75, 150, 237]

    def test_a_rate_above_the_videos_shows_each_frame_once(self) -> None:
        chosen = FrameSampling(fps=50).choose(even(10))
        assert chosen.numbers == list(range(10)) and chosen.repeats == 10

    def test_a_rate_of_a_long_video_makes_no_list(self) -> None:
        chosen = FrameSampling(fps=1000, max_frames=8).choose(np.array([0.0, 1e9]))
        assert chosen.numbers == [0, 1]

    def test_a_range(self) -> None:
        assert FrameSampling(num_frames=3, start=1, end=2).choose(even(100)).numbers == [25, 37, 49]
        # between two frames, the first is shown
        assert FrameSampling(num_frames=3, start=0.05, end=0.06).choose(even(100)).numbers == [1]

    def test_another_range_of_the_same_rule(self) -> None:
        rule = FrameSampling(num_frames=2).within(1, None)
        assert rule.choose(even(100)).numbers == [25, 99]


class TestFaults:
    @pytest.mark.parametrize(
        ("arguments", "found"),
        [
            ({"num_frames": 0}, "num_frames=0: expected a whole number from 1 to 1,024"),
            ({"num_frames": 8, "fps": 1}, "num_frames=8 and fps=1: give one of them"),
            ({"fps": 0}, "fps=0: expected a number above 0"),
            ({"fps": float("nan")}, "fps=nan"),
            ({"max_frames": 5000}, "max_frames=5000"),
            ({"start": -1}, "start=-1: expected seconds from the beginning"),
            ({"start": 2, "end": 2}, "the range from 2 to 2 s is empty"),
            ({"start": 2, "end": 1}, "the range from 2 to 1 s is empty"),
        ],
    )
    def test_what_is_no_rule(self, arguments: dict[str, float], found: str) -> None:
        with pytest.raises(XTunerError, match=found):
            FrameSampling(**arguments)  # type: ignore[arg-type]

    def test_a_range_behind_the_end(self) -> None:
        with pytest.raises(SampleError, match=r"no frames from 9 s on: it ends at 4\.00 s") as caught:
            FrameSampling(start=9).choose(even(100))
        assert caught.value.kind == "no frames in the range"

    def test_no_frames(self) -> None:
        with pytest.raises(SampleError, match="holds no frames"):
            FrameSampling().choose(np.zeros(0))
