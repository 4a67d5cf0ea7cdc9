"""Pictures with boxes in requests to vLLM; nothing here needs vLLM."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mg_llava.boxes.selection import BoxSelection, PictureBoxes, nms_per_class
from mg_llava.boxes.urls import with_boxes
from mg_llava.serving.vllm.boxed import (
    BoxedPicture,
    join_options,
    kept_name,
    read_pictures,
    split_boxes,
    spread_boxes,
)
from xtuner.errors import XTunerError

PICTURE = Image.new("RGB", (40, 30), (200, 30, 30))
BOX = [1.0, 2.0, 30.0, 20.0]
WORDS = {"boxes": [BOX], "labels": ["a cat"], "scores": [0.5]}


@dataclass
class Fetched:
    """As vLLM's loader returns a picture: what it made of a file, and the file."""

    media: Image.Image
    original_bytes: bytes


def boxes_in(found: PictureBoxes | None) -> list[list[float]] | None:
    return None if found is None else found.boxes.tolist()


class TestPictures:
    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            (PICTURE, None),
            ({"image": PICTURE}, None),
            ({"image": PICTURE, "boxes": None}, None),
            ({"image": PICTURE, "boxes": []}, []),
            ({"image": PICTURE, "boxes": [BOX]}, [BOX]),
            ({"image": PICTURE, "boxes": WORDS}, [BOX]),
            ({"image": Fetched(PICTURE, b"file"), "boxes": [BOX]}, [BOX]),
            (np.zeros((3, 4, 3), np.uint8), None),
            (b"file", None),
            (None, None),
        ],
    )
    def test_forms(self, given: Any, expected: Any) -> None:
        (picture,) = read_pictures(given)
        assert boxes_in(picture.found) == expected
        # vLLM reads what it has not kept a second time
        assert read_pictures([picture]) == [picture]

    def test_several(self) -> None:
        pictures = read_pictures([PICTURE, {"image": PICTURE, "boxes": [BOX]}])
        assert [boxes_in(picture.found) for picture in pictures] == [None, [BOX]]

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ("/etc/passwd", "a picture is a str"),
            ("http://169.254.169.254/latest", "a picture is a str"),
            ({"image": "/etc/passwd", "boxes": [BOX]}, "a picture is a str"),
            ({"boxes": [BOX]}, r"has the fields \['boxes'\]"),
            ({"image": PICTURE, "bboxes": [BOX]}, r"expected 'image' and, where known, 'boxes'"),
            ({"image_embeds": np.zeros(3)}, "has the fields"),
            (np.zeros((3, 4, 3), np.float32), "a picture is a ndarray"),
            ({"image": PICTURE, "boxes": "all"}, "the boxes cannot be read"),
            ({"image": PICTURE, "boxes": [[1, 2, 3]]}, "the boxes cannot be read"),
            ({"image": PICTURE, "boxes": [[0, 0, float("nan"), 1]]}, "not finite"),
            ({"image": PICTURE, "boxes": [[0, 0, 1e39, 1]]}, "not finite"),
            ({"image": PICTURE, "boxes": {**WORDS, "scores": [float("inf")]}}, "not finite"),
        ],
    )
    def test_refused(self, given: Any, message: str) -> None:
        with pytest.raises(XTunerError, match=message):
            read_pictures(given)

    def test_a_file_s_own_bytes_go_first(self) -> None:
        # what vLLM decoded is turned by its EXIF tag, which boxes do not follow
        assert BoxedPicture.read(Fetched(PICTURE, b"file")).content == b"file"
        assert BoxedPicture.read(PICTURE).content is PICTURE


class TestCacheKey:
    def test_boxes_count(self) -> None:
        keys = [
            {"image": PICTURE},
            {"image": PICTURE, "boxes": []},
            {"image": PICTURE, "boxes": [BOX]},
            {"image": PICTURE, "boxes": [[1, 2, 30, 21]]},
            {"image": PICTURE, "boxes": WORDS},
        ]
        shown = [_plain(BoxedPicture.read(key).cache_key) for key in keys]
        assert len(set(shown)) == len(keys)

    def test_is_the_same_whichever_way_boxes_come(self) -> None:
        beside = BoxedPicture.read({"image": PICTURE, "boxes": [BOX]})
        (by_option,) = join_options(read_pictures(PICTURE), {"boxes": [[BOX]]})
        url, found = split_boxes(with_boxes("data:image/png;base64,AAAA", [BOX]))
        assert url == "data:image/png;base64,AAAA"
        in_url = BoxedPicture(PICTURE, found)
        assert _plain(beside.cache_key) == _plain(by_option.cache_key) == _plain(in_url.cache_key)

    def test_names_of_the_sender_are_told_apart_by_boxes(self) -> None:
        names = {
            kept_name(BoxedPicture.read({"image": PICTURE, "boxes": boxes}), "cat")
            for boxes in (None, [], [BOX], [[1, 2, 30, 21]], WORDS)
        }
        assert len(names) == 5 and "cat" in names
        assert kept_name(BoxedPicture.read({"image": PICTURE, "boxes": [BOX]}), None) is None

    def test_holds_only_what_vllm_hashes_without_pickle(self) -> None:
        key = BoxedPicture.read({"image": Fetched(PICTURE, b"file"), "boxes": WORDS}).cache_key
        assert key["image"] == b"file"
        assert [type(part) for part in key["boxes"]] == [np.ndarray, list, np.ndarray]


class TestOptions:
    @pytest.mark.parametrize(
        ("count", "given", "expected"),
        [
            (1, None, [None]),
            (1, [BOX], [[BOX]]),
            (1, [[BOX]], [[BOX]]),
            (1, WORDS, [[BOX]]),
            (2, [[BOX], None], [[BOX], None]),
            (2, [None, [BOX, BOX]], [None, [BOX, BOX]]),
        ],
    )
    def test_boxes_of_each_picture(self, count: int, given: Any, expected: Any) -> None:
        joined = join_options(read_pictures([PICTURE] * count), {} if given is None else {"boxes": given})
        assert [boxes_in(picture.found) for picture in joined] == expected

    def test_a_picture_s_own_boxes_go_first(self) -> None:
        own = read_pictures([{"image": PICTURE, "boxes": []}, PICTURE])
        assert [boxes_in(picture.found) for picture in join_options(own, {"boxes": [[BOX], [BOX]]})] == [[], [BOX]]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"boxes": [[BOX], [BOX], [BOX]]}, "3 lists of boxes for 2 pictures"),
            ({"boxes": 7}, "the boxes are a int: expected one list per picture, of 2 pictures"),
            ({"boxes": [[[0, 0, float("nan"), 1]], None]}, "not finite"),
            ({"bokses": [[BOX], None]}, "mm_processor_kwargs has 'bokses'.*Did you mean 'boxes'"),
            ({"num_crops": 4}, "mm_processor_kwargs has 'num_crops'"),
        ],
    )
    def test_refused(self, options: Any, message: str) -> None:
        with pytest.raises(XTunerError, match=message):
            join_options(read_pictures([PICTURE, PICTURE]), options)


class TestUrls:
    @given(
        st.lists(st.tuples(*[st.floats(0, 1e4, width=32)] * 4), max_size=5),
        st.sampled_from(["data:image/png;base64,iVBO+/=", "https://a.b/c%20d.jpg?x=1&y=2"]),
    )
    def test_come_back(self, boxes: list[tuple[float, ...]], url: str) -> None:
        address, found = split_boxes(with_boxes(url, [list(box) for box in boxes]))
        assert address == url and found is not None
        assert np.array_equal(found.boxes, np.array(boxes, np.float32).reshape(-1, 4))

    def test_labels_and_scores(self) -> None:
        _, found = split_boxes(with_boxes("https://a.b/c.jpg#top", {**WORDS, "labels": ["tête #1 & co"]}))
        assert found is not None and found.labels == ("tête #1 & co",) and found.scores.tolist() == [0.5]

    def test_without(self) -> None:
        url = "https://a.b/c.jpg#top"
        assert split_boxes(url) == (url, None)
        assert with_boxes("data:,x", None) == "data:,x"

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("[[1,2", "are no JSON"),
            ("[" * 100_000, "are no JSON"),
            ("[[1,2]]", "cannot be read"),
            ("[[0,0,NaN,1]]", "not finite"),
        ],
    )
    def test_refused(self, text: str, message: str) -> None:
        with pytest.raises(XTunerError, match=message):
            split_boxes(f"data:,x#boxes={text}")

    def test_ten_thousand(self) -> None:
        boxes = spread_boxes(10_000, 2000)
        _, found = split_boxes(with_boxes("data:,x", boxes))
        assert found is not None and len(found.boxes) == 10_000
        assert len(BoxSelection()(*found).boxes) == 100
        with pytest.raises(XTunerError, match="10,001 boxes, but at most 10,000"):
            BoxSelection()(np.zeros((10_001, 4), np.float32), ["a"] * 10_001, np.ones(10_001, np.float32))


@pytest.mark.parametrize("count", [0, 1, 2, 100, 101])
def test_spread_boxes_survive(count: int) -> None:
    boxes = np.array(spread_boxes(count, 192), np.float32).reshape(-1, 4)
    assert len(boxes) == count and (boxes >= 0).all() and (boxes <= 192).all()
    assert len(nms_per_class(boxes, ["a"] * count, np.ones(count, np.float32), 0.2)) == count


def test_needs_no_vllm() -> None:
    code = (
        "import sys; sys.modules['vllm'] = None; import mg_llava.serving.vllm.boxed, mg_llava.serving.vllm.versions; "
        "import mg_llava.serving.vllm"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def _plain(key: dict[str, Any]) -> str:
    return json.dumps({"boxes": key["boxes"]}, default=lambda part: [part.tolist(), str(part.dtype)])
