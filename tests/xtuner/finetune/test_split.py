"""Holding records out: by whole pictures, by seed, and what cannot be done is one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xtuner.data.text.conversations import parse_record
from xtuner.errors import ProblemsError, XTunerError
from xtuner.finetune.split import OwnRecord, check_pictures, read_own_records, split_records, write_records


def row(name: Any, *images: str) -> dict[str, Any]:
    """A record with these pictures."""
    question = {"from": "human", "value": "<image>\n" * len(images) + "what"}
    turns = [question, {"from": "gpt", "value": "red"}]
    return {"id": name, **({"image": list(images)} if images else {}), "conversations": turns}


def own(*rows: dict[str, Any]) -> list[OwnRecord]:
    """The records as they are read."""
    return [OwnRecord(value, parse_record(value, place)) for place, value in enumerate(rows)]


def pictures(records: list[OwnRecord]) -> set[str]:
    """All their pictures."""
    return {name for record in records for name in record.conversation.images}


class TestSplit:
    @settings(max_examples=60, deadline=None)
    @given(
        images=st.lists(st.lists(st.sampled_from("abcdefghijkl"), max_size=2, unique=True), min_size=10, max_size=60),
        share=st.floats(0.01, 0.5),
        seed=st.integers(0, 5),
    )
    def test_no_picture_is_on_both_sides_and_no_record_is_lost(self, images, share, seed):
        records = own(*(row(place, *names) for place, names in enumerate(images)))
        try:
            split = split_records(records, share, seed)
        except XTunerError as error:
            assert "share pictures" in str(error)
            return
        assert not pictures(split.training) & pictures(split.held_out)
        assert sorted(r.value["id"] for r in split.training + split.held_out) == list(range(len(images)))
        assert split.training and split.held_out
        assert split.held_out == split_records(records, share, seed).held_out

    def test_about_the_share_and_by_seed(self):
        records = own(*(row(place, f"{place // 2}.png") for place in range(60)))
        split = split_records(records, 0.1, 42)
        assert len(split.held_out) == 6
        assert split.held_out != split_records(records, 0.1, 43).held_out

    def test_none_held_out(self):
        assert split_records(own(row(1), row(2), row(3)), 0.0, 1).held_out == []

    def test_nothing_left_to_train_on_is_refused(self):
        with pytest.raises(XTunerError, match=r"holds out all 12 records and leaves none"):
            split_records(own(*(row(number, f"{number}.png") for number in range(12))), 0.99, 0)

    @pytest.mark.parametrize(
        ("share", "why"),
        [
            (1.0, "--held-out 1 would hold out all records"),
            (1.5, "--held-out 1.5 is more than all"),
            (-1.0, "--held-out -1 is negative"),
            (float("nan"), "--held-out nan is no number"),
        ],
    )
    def test_no_share_is_refused_with_its_reason(self, share, why):
        with pytest.raises(XTunerError, match=f"{why}.*expected a share from 0"):
            split_records(own(*(row(place) for place in range(20))), share, 1)

    def test_three_records_are_too_few(self):
        with pytest.raises(XTunerError, match=r"3 records are too few.*--held-out 0"):
            split_records(own(row(1), row(2), row(3)), 0.1, 1)

    def test_one_picture_for_all_cannot_be_held_out(self):
        with pytest.raises(XTunerError, match="all 20 records share pictures"):
            split_records(own(*(row(place, "a.png") for place in range(20))), 0.1, 1)

    def test_the_same_words_without_a_picture_stay_together(self):
        records = own(*(row(place) for place in range(6)), *(row(place, f"{place}.png") for place in range(6, 12)))
        for seed in range(5):
            split = split_records(records, 0.2, seed)
            assert len({bool(pictures([record])) for record in split.held_out}) == 1

    def test_the_lightest_picture_goes_where_all_are_heavy(self):
        rows = [row(place, "ab"[place > 7] + ".png") for place in range(20)]
        assert pictures(split_records(own(*rows), 0.1, 1).held_out) == {"a.png"}


class TestFiles:
    def test_every_faulty_record_at_once(self, tmp_path: Path):
        (tmp_path / "d.json").write_text(json.dumps([row(1), {"id": 2}, {"id": 3}]))
        with pytest.raises(ProblemsError, match="2 problems"):
            read_own_records(str(tmp_path / "d.json"))

    def test_records_without_an_answer_are_left_out(self, tmp_path: Path):
        silent = {"id": 2, "conversations": [{"from": "human", "value": "what"}]}
        (tmp_path / "d.json").write_text(json.dumps([row(1), silent]))
        assert [record.value["id"] for record in read_own_records(str(tmp_path / "d.json"))] == [1]
        empty = {"id": 3, "conversations": [{"from": "human", "value": "what"}, {"from": "gpt", "value": " "}]}
        (tmp_path / "d.json").write_text(json.dumps([silent, empty]))
        with pytest.raises(XTunerError, match="2 records, and none has an answer"):
            read_own_records(str(tmp_path / "d.json"))
        (tmp_path / "d.json").write_text(json.dumps([silent]))
        with pytest.raises(XTunerError, match="1 record, and none has an answer"):
            read_own_records(str(tmp_path / "d.json"))

    def test_what_is_written_is_read_again(self, tmp_path: Path):
        records = own(row(1, "ä.png"), row("2"))
        write_records(records, tmp_path / "data" / "d.jsonl")
        assert [r.value for r in read_own_records(str(tmp_path / "data" / "d.jsonl"))] == [r.value for r in records]


class TestPictures:
    def test_all_missing_is_one_sentence(self, tmp_path: Path):
        with pytest.raises(XTunerError, match="none of the 2 pictures") as raised:
            check_pictures(own(row(1, "a.png"), row(2, "b.png")), str(tmp_path))
        assert "\n" not in str(raised.value)

    def test_one_missing_is_left_to_check_dataset(self, tmp_path: Path):
        (tmp_path / "a.png").write_bytes(b"")
        check_pictures(own(row(1, "a.png"), row(2, "b.png")), str(tmp_path))

    def test_windows_paths_are_named(self, tmp_path: Path):
        (tmp_path / "sub").mkdir()
        (tmp_path / "sub" / "a.png").write_bytes(b"")
        with pytest.raises(
            XTunerError, match=r"1 of 2 pictures have paths of Windows.*'sub\\a.png'.*'sub/a.png', which is there"
        ):
            check_pictures(own(row(1, "sub\\a.png"), row(2, "b.png")), str(tmp_path))

    def test_pictures_of_the_net_are_not_fetched(self, tmp_path: Path):
        with pytest.raises(XTunerError, match="'https://a.org/a.png': nothing is fetched from the net"):
            check_pictures(own(row(1, "https://a.org/a.png")), str(tmp_path))

    def test_text_alone_needs_no_picture(self, tmp_path: Path):
        check_pictures(own(row(1)), str(tmp_path))


class TestVideos:
    @staticmethod
    def clip(name: Any, video: str) -> dict[str, Any]:
        """A record with this video."""
        turns = [{"from": "human", "value": "<video>\nwhat"}, {"from": "gpt", "value": "red"}]
        return {"id": name, "video": video, "conversations": turns}

    def test_parts_of_a_video_stay_together(self, tmp_path: Path) -> None:
        rows = [self.clip(place, f"v/{place // 3}.mp4#t={place % 3},{place % 3 + 1}") for place in range(30)]
        (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
        split = split_records(read_own_records(str(tmp_path / "data.jsonl")), 0.3, 1)
        held = {name for record in split.held_out for name in record.files}
        assert held and not held & {name for record in split.training for name in record.files}
        assert all(name.endswith(".mp4") for name in held) and len(split.held_out) == 3 * len(held)

    def test_where_they_lie(self, tmp_path: Path) -> None:
        (tmp_path / "frames").mkdir()
        (tmp_path / "data.jsonl").write_text(json.dumps(self.clip("a", "frames#t=1")))
        records = read_own_records(str(tmp_path / "data.jsonl"))
        check_pictures(records, str(tmp_path))
        with pytest.raises(XTunerError, match="the only file that the records name is not in .*'frames': --images"):
            check_pictures(records, str(tmp_path / "frames"))
