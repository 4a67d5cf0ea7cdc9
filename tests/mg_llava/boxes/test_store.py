"""Looking boxes up by picture and id, and what a faulty box file says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mg_llava.boxes.store import BoxStore
from xtuner.errors import ProblemsError, XTunerError


def record(x: float = 0, **more: Any) -> dict[str, Any]:
    return {"boxes": [[x, 0, x + 5, 5]], "labels": ["dog"], "scores": [0.9], **more}


@pytest.fixture
def store(tmp_path: Path) -> Any:
    def make(content: Any, **arguments: Any) -> BoxStore:
        path = tmp_path / "boxes.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return BoxStore(path, **arguments)

    return make


def left(found: Any) -> list[float]:
    return found.boxes[:, 0].tolist()


class TestLookup:
    def test_the_path_is_preferred(self, store: Any) -> None:
        boxes = store([record(1, image="a/x.png"), record(2, id="s")])
        assert left(boxes.lookup("a/x.png", "s")) == [1]
        assert left(boxes.lookup("./a//x.png")) == [1]
        assert left(boxes.lookup("other.png", "s")) == [2]
        assert len(boxes) == 2

    def test_ids_may_be_numbers(self, store: Any) -> None:
        assert left(store([record(3, id=12345)]).lookup("x.png", "12345")) == [3]

    def test_an_unknown_picture_has_no_boxes(self, store: Any) -> None:
        found = store([record(image="x.png")]).lookup("y.png", "s")
        assert found.boxes.shape == (0, 4) and found.scores.shape == (0,) and found.labels == ()

    def test_a_record_without_boxes(self, store: Any) -> None:
        empty = {"image": "x.png", "boxes": [], "labels": [], "scores": []}
        assert store([empty]).lookup("x.png").boxes.shape == (0, 4)

    def test_keys_of_an_object_are_paths_or_ids(self, store: Any) -> None:
        boxes = store({"x.png": record(1), "s": record(2), "y.png": record(3, id="t")})
        assert left(boxes.lookup("x.png")) == [1]
        assert left(boxes.lookup("unknown.png", "s")) == [2]
        assert left(boxes.lookup("y.png")) == left(boxes.lookup(None, "t")) == [3]

    def test_sizes_are_kept(self, store: Any) -> None:
        boxes = store([record(image="x.png", width=40, height=30), record(image="y.png")])
        assert [boxes.find(name).size for name in ("x.png", "y.png")] == [(40, 30), None]

    def test_an_id_does_not_fit_several_pictures(self, store: Any) -> None:
        boxes = store([record(id="s"), record(7, image="x.png")])
        assert left(boxes.lookup("x.png", "s", num_images=2)) == [7]
        with pytest.raises(XTunerError, match="id 's' only, but that sample has 2 pictures"):
            boxes.lookup("y.png", "s", num_images=2)

    def test_a_repeated_id_with_other_boxes(self, store: Any) -> None:
        boxes = store([record(1, id="s"), record(2, id="s"), record(3, id="t"), record(3, id="t")])
        assert left(boxes.lookup(None, "t")) == [3]
        with pytest.raises(XTunerError, match="id 's' several times with different boxes .*number 1.*number 2"):
            boxes.lookup(None, "s")

    def test_a_repeated_picture_with_other_boxes(self, store: Any) -> None:
        with pytest.raises(XTunerError, match="image 'x.png' several times"):
            store([record(1, image="x.png"), record(2, image="x.png")]).lookup("x.png")


class TestFaults:
    @pytest.mark.parametrize(
        ("bad", "message"),
        [
            ({**record(), "id": "s", "labels": []}, r"'s'\): 1 box, 0 labels, 1 score;"),
            ({**record(), "id": "s", "boxes": [[1, 2, 3]]}, r"shape \(1, 3\)"),
            ({**record(), "id": "s", "boxes": [[1, 2, 3, "4"]]}, "'boxes' cannot be read"),
            ({**record(), "id": "s", "boxes": [[1, 2, 3, 4], [5]]}, "'boxes' cannot be read"),
            ({**record(), "id": "s", "scores": [None]}, "'scores' cannot be read"),
            ({**record(), "id": "s", "scores": 0.5}, "'scores' is '0.5', expected a list"),
            ({"id": "s"}, "'boxes' is 'None'"),
            ({**record(), "id": "s", "width": 10}, "width=10, height=None"),
            (record(), "neither 'image' nor 'id'"),
            ([1, 2], "is of type list: expected an object"),
        ],
    )
    def test_a_malformed_record_is_named(self, bad: Any, message: str, store: Any) -> None:
        with pytest.raises(ProblemsError, match=message):
            store([record(image="x.png"), bad])
        boxes = store([record(image="x.png"), bad], check=False)
        assert len(boxes) == 1 and len(boxes.problems) == 1 and "number 2" in boxes.problems[0]

    def test_all_malformed_records_are_named_at_once(self, store: Any) -> None:
        with pytest.raises(ProblemsError, match="2 problems"):
            store([{"id": "a"}, {"id": "b"}])

    @pytest.mark.parametrize(
        ("content", "message"),
        [("[{]", "line 1, column 3"), ("3", "record number 1 is of type int"), ("", "is empty")],
    )
    def test_no_box_file(self, content: str, message: str, store: Any) -> None:
        with pytest.raises(XTunerError, match=message):
            store(content)

    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(XTunerError, match="cannot be read .*check box_json_path"):
            BoxStore(tmp_path / "none.json")
