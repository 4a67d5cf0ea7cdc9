"""Detectors give what the library's own forward pass and post-processing give."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mg_llava.boxes.selection import PictureBoxes
from mg_llava.detectors import (
    BoxFileDetector,
    Florence2Detector,
    GroundingDinoDetector,
    NoDetector,
    OmdetTurboDetector,
    Owlv2Detector,
    RamTagger,
    TagFile,
    read_vocabulary,
)
from mg_llava.detectors.base import without_extremes
from tests.tiny_assistant import box_record, save_picture
from tests.tiny_detectors import NAMES, tiny_florence2, tiny_grounding_dino, tiny_omdet_turbo, tiny_owlv2
from tests.tiny_parts import tiny_clip_folder
from xtuner.errors import XTunerError


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Image.Image]:
    folder = tmp_path_factory.mktemp("pictures")
    sizes = [(50, 30), (24, 60), (40, 40)]
    return [Image.open(save_picture(folder / f"{n}.png", n, size)).convert("RGB") for n, size in enumerate(sizes)]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("vocabulary") / "names.txt"
    path.write_text("# mine\n" + "\n".join([*NAMES, "", "cat"]) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def owlv2(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_owlv2(tmp_path_factory.mktemp("owlv2") / "model"))


@pytest.fixture(scope="module")
def grounding_dino(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_grounding_dino(tmp_path_factory.mktemp("dino") / "model"))


def assert_same(found: PictureBoxes, boxes: Any, labels: list[str], scores: Any, picture: Image.Image) -> None:
    """Equal up to order and to the cut at the picture's edges."""
    size = torch.tensor([picture.width, picture.height] * 2)
    clipped = torch.minimum(boxes.float().clamp(min=0), size.float())
    kept = (clipped[:, 2] > clipped[:, 0]) & (clipped[:, 3] > clipped[:, 1])
    order = scores[kept].argsort(descending=True, stable=True)
    np.testing.assert_allclose(found.scores, scores[kept][order].numpy(), atol=1e-5)
    # 1e-3 px: another batch, another order of sums
    np.testing.assert_allclose(found.boxes, clipped[kept][order].numpy(), atol=1e-3)
    assert list(found.labels) == [[label for label, keep in zip(labels, kept, strict=True) if keep][i] for i in order]


class TestOwlv2:
    def library(self, detector: Owlv2Detector, picture: Image.Image, names: list[str]) -> dict[str, Any]:
        texts = [f"a photo of {name}" for name in names]
        inputs = detector.processor(text=[texts], images=picture, return_tensors="pt")
        with torch.inference_mode():
            outputs = detector.model(**inputs)
        return detector.processor.post_process_grounded_object_detection(
            outputs, threshold=detector.threshold, target_sizes=[(picture.height, picture.width)], text_labels=[names]
        )[0]

    def test_equals_the_library(self, owlv2: str, vocabulary: str, pictures: list[Image.Image]) -> None:
        detector = Owlv2Detector(owlv2, vocabulary, threshold=0.01)
        found = detector(pictures)
        assert sum(len(one.boxes) for one in found) > 5
        assert len({label for one in found for label in one.labels}) > 1
        for one, picture in zip(found, pictures, strict=True):
            expected = self.library(detector, picture, NAMES)
            assert_same(one, expected["boxes"], expected["text_labels"], expected["scores"], picture)

    def test_each_name_is_read_once(
        self, owlv2: str, vocabulary: str, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        detector = Owlv2Detector(owlv2, vocabulary)
        read: list[int] = []
        forward = detector.model.owlv2.text_model.forward
        monkeypatch.setattr(
            detector.model.owlv2.text_model, "forward", lambda ids, mask: (read.append(len(ids)), forward(ids, mask))[1]
        )
        detector(pictures)
        detector(pictures)
        assert read == [len(NAMES)]

    def test_tags_of_each_picture(self, owlv2: str, pictures: list[Image.Image], tmp_path: Path) -> None:
        tags = {"a.png": ["cat", "tree"], "c.png": ["dog"]}
        (tmp_path / "tags.json").write_text(json.dumps(tags))
        tagger = {"type": TagFile, "path": str(tmp_path / "tags.json")}
        detector = Owlv2Detector(owlv2, tagger=tagger, threshold=0.01)
        found = detector(pictures, ["a.png", "b.png", "c.png"])
        assert not len(found[1].boxes)
        for one, picture, names in ((found[0], pictures[0], ["cat", "tree"]), (found[2], pictures[2], ["dog"])):
            expected = self.library(detector, picture, names)
            assert len(one.boxes)
            assert_same(one, expected["boxes"], expected["text_labels"], expected["scores"], picture)
        assert [len(one.boxes) for one in detector(pictures[:1], ["unknown.png"])] == [0]
        with pytest.raises(XTunerError, match="by a picture's path"):
            detector(pictures)

    def test_most_boxes(self, owlv2: str, vocabulary: str, pictures: list[Image.Image]) -> None:
        many = Owlv2Detector(owlv2, vocabulary, threshold=0.0)(pictures[:1])[0]
        few = Owlv2Detector(owlv2, vocabulary, threshold=0.0, max_boxes=2)(pictures[:1])[0]
        assert len(few.boxes) == 2 and np.array_equal(few.boxes, many.boxes[:2])
        assert Owlv2Detector(owlv2, vocabulary)([]) == []

    def test_mistakes(self, owlv2: str, tmp_path: Path) -> None:
        with pytest.raises(XTunerError, match="checkpoint '.*absent' cannot be read: .*download it"):
            Owlv2Detector(str(tmp_path / "absent"))
        with pytest.raises(XTunerError, match=r"expected a text with \{\}"):
            Owlv2Detector(owlv2, prompt="a photo")


class TestCheckpoints:
    def test_a_file_that_was_cut_off(self, owlv2: str, tmp_path: Path) -> None:
        folder = Path(shutil.copytree(owlv2, tmp_path / "cut"))
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:5000])
        with pytest.raises(XTunerError, match="cut' cannot be read: .*download it"):
            Owlv2Detector(str(folder))

    def test_one_of_another_model(self, owlv2: str, tmp_path: Path) -> None:
        with pytest.raises(XTunerError, match=r"lacks \d+ of the \d+ weights of Owlv2ForObjectDetection"):
            Owlv2Detector(str(tiny_clip_folder(tmp_path)))
        folder = Path(shutil.copytree(owlv2, tmp_path / "less"))
        kept = load_file(folder / "model.safetensors")
        kept.pop("box_head.dense2.bias")
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
        assert isinstance(Owlv2Detector(str(folder))([]), list)


class TestGroundingDino:
    def test_equals_the_library(self, grounding_dino: str, vocabulary: str, pictures: list[Image.Image]) -> None:
        detector = GroundingDinoDetector(grounding_dino, vocabulary, threshold=0.3, text_threshold=0.3)
        chunks = detector.chunks()
        assert [name for chunk in chunks for name in chunk] == NAMES and len(chunks) == 1
        picture = pictures[0]
        inputs = detector.processor(images=picture, text="cat. dog. red cup. tree.", return_tensors="pt")
        with torch.inference_mode():
            outputs = detector.model(**inputs)
        expected = detector.processor.post_process_grounded_object_detection(
            outputs,
            inputs["input_ids"],
            threshold=0.3,
            text_threshold=0.3,
            target_sizes=[(picture.height, picture.width)],
        )[0]
        named = torch.tensor([bool(label) for label in expected["text_labels"]])
        assert named.any()
        labels = [label for label in expected["text_labels"] if label]
        assert_same(detector([picture])[0], expected["boxes"][named], labels, expected["scores"][named], picture)

    def test_a_long_vocabulary_is_looked_for_in_parts(
        self, grounding_dino: str, pictures: list[Image.Image], tmp_path: Path
    ) -> None:
        words = ["cat", "dog", "red cup", "tree", "red cat", "red dog", "red tree", "cup", "red"]
        (tmp_path / "names.txt").write_text("\n".join(words))
        detector = GroundingDinoDetector(grounding_dino, str(tmp_path / "names.txt"), threshold=0.2)
        chunks = detector.chunks()
        assert len(chunks) > 1 and [name for chunk in chunks for name in chunk] == words
        for chunk in chunks:
            ids = detector.processor.tokenizer(" ".join(f"{name}." for name in chunk))["input_ids"]
            assert len(ids) <= detector.model.config.max_text_len
        found = detector(pictures)
        assert len(found) == 3 and all((np.diff(one.scores) <= 0).all() for one in found)


class TestOmdetTurbo:
    def test_equals_the_library(self, vocabulary: str, pictures: list[Image.Image], tmp_path: Path) -> None:
        path = str(tiny_omdet_turbo(tmp_path / "model"))
        detector = OmdetTurboDetector(path, vocabulary, threshold=0.05)
        picture = pictures[0]
        inputs = detector.processor(images=[picture], text=[NAMES], return_tensors="pt")
        with torch.inference_mode():
            outputs = detector.model(**inputs)
        expected = detector.processor.post_process_grounded_object_detection(
            outputs, text_labels=[NAMES], threshold=0.05, target_sizes=[(picture.height, picture.width)]
        )[0]
        assert len(expected["boxes"]) > 1
        assert_same(detector([picture])[0], expected["boxes"], expected["text_labels"], expected["scores"], picture)
        halves = OmdetTurboDetector(path, vocabulary, threshold=0.05, names_at_once=2)
        assert halves.chunks() == [NAMES[:2], NAMES[2:]] and len(halves(pictures)) == 3


class TestFlorence2:
    def test_places_are_read_from_the_text(
        self, pictures: list[Image.Image], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
    ) -> None:
        """The model's own text is nonsense; in its place stands one with places whose pixels are worked out here."""
        detector = Florence2Detector(str(tiny_florence2(tmp_path / "model")), max_new_tokens=8)
        assert "gives no scores: every box gets 1" in " ".join(capsys.readouterr().err.split())
        assert all(isinstance(found, PictureBoxes) for found in detector(pictures[:2]))
        words = ["</s>", "<s>", "cat", "<loc_0>", "<loc_0>", "<loc_499>", "<loc_999>", "dog", "<loc_500>", "<loc_100>"]
        ids = detector.processor.tokenizer.convert_tokens_to_ids([*words, "<loc_999>", "<loc_800>", "</s>"])
        monkeypatch.setattr(detector.model, "generate", lambda **_: torch.tensor([ids]))
        (found,) = detector(pictures[:1])
        assert found.labels == ("cat", "dog") and found.scores.tolist() == [1.0, 1.0]
        # place k of 1000 is the middle of the k-th part of 50 x 30 pixels, which the library rounds down
        cat = [0.5 * 0.05, 0.5 * 0.03, 499.5 * 0.05, 999.5 * 0.03]
        dog = [500.5 * 0.05, 100.5 * 0.03, 999.5 * 0.05, 800.5 * 0.03]
        assert found.boxes.tolist() == np.floor([cat, dog]).tolist()


class TestHalfPrecision:
    """As GPUs run them: bfloat16 weights, the same places up to its 8 bits."""

    @pytest.mark.parametrize(
        ("make", "kind", "threshold"),
        [
            (tiny_owlv2, Owlv2Detector, 0.01),
            (tiny_grounding_dino, GroundingDinoDetector, 0.3),
            (tiny_omdet_turbo, OmdetTurboDetector, 0.05),
        ],
    )
    def test_bfloat16(
        self, make: Any, kind: Any, threshold: float, vocabulary: str, pictures: list[Image.Image], tmp_path: Path
    ) -> None:
        path = str(make(tmp_path / "model"))
        whole, half = (kind(path, vocabulary, threshold=threshold, dtype=d) for d in ("float32", "bfloat16"))
        assert {p.dtype for p in half.model.parameters()} == {torch.bfloat16}
        for one, other in zip(whole(pictures), half(pictures), strict=True):
            assert len(one.boxes) and other.boxes.dtype == np.float32
            distance = np.abs(one.boxes[:, None] - other.boxes[None]).max(2).min(1)
            # 8 bits of a picture of 60 pixels are 0.2; which of two boxes of a kind is kept may change
            assert np.median(distance) < 1.0


class TestVocabulary:
    def test_shipped(self) -> None:
        names = read_vocabulary(None)
        assert len(names) >= 1200 and len(set(names)) == len(names)
        assert {"dog", "traffic light", "tree", "laptop computer", "person"} <= set(names)
        assert all(name == name.lower() and "_" not in name for name in names)

    def test_of_the_user(self, vocabulary: str, tmp_path: Path) -> None:
        assert read_vocabulary(vocabulary) == NAMES
        with pytest.raises(XTunerError, match="cannot be read"):
            read_vocabulary(str(tmp_path / "absent.txt"))
        (tmp_path / "empty.txt").write_text("# nothing\n")
        with pytest.raises(XTunerError, match="holds no name"):
            read_vocabulary(str(tmp_path / "empty.txt"))


class TestOthers:
    def test_box_file(self, pictures: list[Image.Image], tmp_path: Path) -> None:
        (tmp_path / "boxes.json").write_text(json.dumps([box_record("a.png")]))
        detector = BoxFileDetector(str(tmp_path / "boxes.json"))
        assert [len(one.boxes) for one in detector(pictures[:2], ["a.png", "b.png"])] == [2, 0]
        with pytest.raises(XTunerError, match="by a picture's path"):
            detector(pictures)

    def test_none(self, pictures: list[Image.Image]) -> None:
        assert [len(one.boxes) for one in NoDetector()(pictures)] == [0, 0, 0]

    def test_ram_is_optional(self) -> None:
        with pytest.raises(XTunerError, match="RAM\\+\\+ needs the package 'ram'.*TagFile"):
            RamTagger("ram.pth")

    @pytest.mark.parametrize("content", ["[1]", "{", '{"a": 1}'])
    def test_tag_file(self, content: str, tmp_path: Path) -> None:
        (tmp_path / "tags.json").write_text(content)
        with pytest.raises(XTunerError, match="picture → list of names"):
            TagFile(str(tmp_path / "tags.json"))


def test_extreme_shapes_are_shrunk_before_a_detector_pads_them() -> None:
    pictures = [Image.new("RGB", size) for size in ((1, 20_000), (4000, 500), (3000, 2000), (20, 4))]
    sizes = [picture.size for picture in without_extremes(pictures, 960)]
    assert sizes == [(1, 960), (960, 120), (3000, 2000), (20, 4)]
