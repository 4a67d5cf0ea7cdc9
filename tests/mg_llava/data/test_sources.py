"""Mixtures of sources, pictures in archives, bad samples, and looking at the data."""

from __future__ import annotations

import json
import logging
import pickle
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mg_llava.data.dataset import MGLLaVADataset
from mg_llava.data.sources import DataSource, read_sources
from mg_llava.model.batch import BatchPreprocessor
from mg_llava.pictures.normalize import PixelNormalizer
from mg_llava.pictures.pooling import ImageTokens
from tests.mg_llava.data.test_dataset import BOXES, RECORDS, SIZE, box_record, talk, world
from xtuner.errors import XTunerError
from xtuner.tools import browse_dataset

__all__ = ["world"]


def mixture(arguments: dict[str, Any], tmp_path: Path, **changes: Any) -> dict[str, Any]:
    """Two sources: the world's, and one with a folder and a template of its own and no boxes."""
    (tmp_path / "more").mkdir()
    Image.new("RGB", (6, 6)).save(tmp_path / "more" / "d.png")
    record = {"id": "other", "image": "d.png", "conversations": talk("<image>\nWhat is this")}
    (tmp_path / "more.jsonl").write_text(json.dumps(record))
    other = {
        "data_path": str(tmp_path / "more.jsonl"),
        "image_folder": str(tmp_path / "more"),
        "box_json_path": "",
        "prompt_template": "bare",
        "repeats": 2.5,
        **changes,
    }
    return {**arguments, "data_path": [arguments["data_path"], other]}


class TestMixture:
    def test_each_source_has_its_own_folder_template_and_boxes(self, world: Any, tmp_path: Path) -> None:
        dataset = MGLLaVADataset(**mixture(world(), tmp_path))
        assert dataset.source_names == ["data", "more"] and dataset.repeats == [1.0, 2.5]
        assert dataset.source_of.tolist() == [0, 0, 0, 0, 1]
        last = dataset[4]
        assert (last["sample_id"], last["source"], len(last["boxes"][0])) == ("other", 1, 0)
        assert "USER" in dataset.tokenizer.decode(dataset[1]["input_ids"])
        assert "USER" not in dataset.tokenizer.decode(last["input_ids"][last["input_ids"] >= 0])
        assert "from more" in dataset.describe(4)
        batch = dataset.collate_fn([dataset[0], last])
        assert batch["sources"].tolist() == [0, 1] and batch["num_sources"] == 2

    def test_targets_know_their_source(self, world: Any, tmp_path: Path) -> None:
        dataset = MGLLaVADataset(**mixture(world(), tmp_path))
        batch = dataset.collate_fn([dataset[1], dataset[4], dataset[0]])
        for pack in (False, True):
            prepare = BatchPreprocessor(PixelNormalizer(), SIZE, 8, ImageTokens(4, 4), 100, True, pack)
            prepared = prepare(batch, training=True)
            supervised = [(sample["labels"] != -100).sum() for sample in (dataset[1], dataset[4], dataset[0])]
            assert prepared["target_sources"].sum(dim=0).tolist() == [supervised[0] + supervised[2], supervised[1]]
            assert prepared["target_sources"].argmax(dim=1)[: supervised[0]].tolist() == [0] * int(supervised[0])

    def test_prepared_in_numbered_folders(self, world: Any, tmp_path: Path) -> None:
        node = mixture(world(), tmp_path)
        assert MGLLaVADataset.prepare(node, str(tmp_path / "out"), 1)["kept"] == 5
        dataset = MGLLaVADataset(**{**node, "offline_processed_text_folder": str(tmp_path / "out")})
        assert len(dataset) == 5 and MGLLaVADataset.check_records(node).problems == []

    def test_names_and_faults(self) -> None:
        sources = read_sources(["a/x.json", DataSource("b/x.json", name="y"), "c/x.json"], "images", "boxes", "bare")
        assert [source.name for source in sources] == ["x#1", "y", "x#3"]
        assert sources[1].image_folder == "images" and sources[1].box_json_path == "boxes"
        for bad, message in (
            ({"data_path": "a", "repeat": 2}, "does not take 'repeat'. Did you mean 'repeats'"),
            ({"repeats": 2}, "names no file"),
            ({"data_path": "a", "repeats": 0}, "repeats=0, expected a number above 0"),
            (3, "data_path holds 3"),
        ):
            with pytest.raises(XTunerError, match=message):
                read_sources([bad], "images", None, "bare")


class TestPreparedBoxes:
    def test_boxes_are_in_the_square_where_the_size_is_known(self, world: Any) -> None:
        dataset = MGLLaVADataset(**world())
        row, _ = dataset.samples.row(2)
        # a.png is 12x8, in a square of 24; the size of b.png is not in the box file
        assert row["box_sizes"] == [12, 8, 0, 0] and row["box_counts"] == [3, 2]
        assert row["boxes"][:4] == [8, 4, 12, 20]
        assert row["boxes"][12:16] == BOXES[1]["boxes"][1]
        assert row["box_labels"] == ["c2", "c1", "c0", "c1", "c0"]

    def test_another_selection_or_box_file_is_refused(self, world: Any, tmp_path: Path) -> None:
        node = world()
        MGLLaVADataset.prepare(node, str(tmp_path / "out"), 1)
        node["offline_processed_text_folder"] = str(tmp_path / "out")
        with pytest.raises(XTunerError, match="box_selection.limit_num: prepared with 100, now 3"):
            MGLLaVADataset(**{**node, "boxes": {**node["boxes"], "limit_num": 3}})
        with pytest.raises(XTunerError, match="box_file: prepared with '.*', now None"):
            MGLLaVADataset(**{**node, "box_json_path": None})

    def test_pickles_for_worker_processes(self, world: Any) -> None:
        dataset = MGLLaVADataset(**world())
        again = pickle.loads(pickle.dumps(dataset))
        for index in range(len(dataset)):
            assert torch.equal(again[index]["pixel_values"], dataset[index]["pixel_values"])
            assert all(torch.equal(a, b) for a, b in zip(again[index]["boxes"], dataset[index]["boxes"], strict=True))


class TestPictures:
    def test_pictures_in_a_zip_file(self, world: Any, tmp_path: Path) -> None:
        plain = MGLLaVADataset(**world())
        with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
            for name in ("a.png", "b/b.png", "c.png"):
                archive.write(tmp_path / name, name)
        zipped = MGLLaVADataset(**world(image_folder=str(tmp_path / "all.zip")))
        for index in range(len(plain)):
            assert torch.equal(zipped[index]["pixel_values"], plain[index]["pixel_values"])
        assert MGLLaVADataset.check_records(world(image_folder=str(tmp_path / "all.zip"))).problems == []

    def test_all_are_looked_for_once(self, world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        node = world()
        MGLLaVADataset(**node)
        with monkeypatch.context() as patch:
            patch.setattr("mg_llava.data.prepared_sources._check_all", None)
            MGLLaVADataset(**node)
        (tmp_path / "c.png").unlink()
        with pytest.raises(XTunerError, match="missing picture: 'c.png'"):
            MGLLaVADataset(**node)

    def test_a_cache_that_cannot_be_written(
        self, world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, framework_log: list[logging.LogRecord]
    ) -> None:
        node = world()
        MGLLaVADataset.prepare(node, str(tmp_path / "out"), 1)
        # a file in the place of a folder: the tests may run as root, who can write anywhere
        (tmp_path / "file").touch()
        monkeypatch.setenv("XTUNER_CACHE", str(tmp_path / "file" / "cache"))
        with pytest.raises(XTunerError, match="cache '.*' cannot be written .*set XTUNER_CACHE"):
            MGLLaVADataset(**node)
        offline = {**node, "offline_processed_text_folder": str(tmp_path / "out")}
        assert len(MGLLaVADataset(**offline)) == 4
        (told,) = [record.getMessage() for record in framework_log if record.levelno == logging.WARNING]
        assert told.startswith("The check for missing pictures runs now and at the next start")
        (tmp_path / "c.png").unlink()
        with pytest.raises(XTunerError, match="missing picture: 'c.png'"):
            MGLLaVADataset(**offline)

    def test_a_batch_is_one_copy_of_the_pictures_bytes(self, world: Any) -> None:
        dataset = MGLLaVADataset(**world())
        pixels = dataset.collate_fn([dataset[0], dataset[3]])["pixel_values"]
        assert pixels.dtype == torch.uint8 and pixels.permute(0, 2, 3, 1).is_contiguous()
        assert pixels.untyped_storage().nbytes() == 2 * 3 * SIZE * SIZE


class TestBadSamples:
    def test_another_stands_for_it(self, world: Any, tmp_path: Path) -> None:
        dataset = MGLLaVADataset(**world(on_bad_sample="skip"))
        (tmp_path / "b" / "b.png").write_bytes(b"broken")
        sample = dataset[2]
        assert sample["sample_id"] == dataset[2]["sample_id"] != "two"
        (bad,) = sample["bad_samples"]
        assert (bad.sample_id, bad.index, bad.kind) == ("two", 2, "picture does not decode")
        batch = dataset.collate_fn([dataset[0], sample])
        assert batch["bad_samples"] == [bad]
        loader = torch.utils.data.DataLoader(dataset, 4, collate_fn=dataset.collate_fn, num_workers=1)
        assert next(iter(loader))["bad_samples"] == [bad]

    def test_where_nothing_can_be_read(self, world: Any, tmp_path: Path) -> None:
        records = [record for record in RECORDS if record["id"] in ("one", "bare")]
        dataset = MGLLaVADataset(**world(records=records, on_bad_sample="skip"))
        for name in ("a.png", "c.png"):
            (tmp_path / name).unlink()
        with pytest.raises(XTunerError, match=r"sample 'one' .*does not exist.*\(1 substitute"):
            dataset[0]

    def test_an_unknown_mode(self, world: Any) -> None:
        with pytest.raises(XTunerError, match="on_bad_sample='ignore': expected one of raise, skip"):
            MGLLaVADataset(**world(on_bad_sample="ignore"))


class TestLooking:
    def test_browse_dataset(self, world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        node = {"type": MGLLaVADataset, **world(boxes=[box_record("a.png", 3, width=12, height=8)])}
        cfg = SimpleNamespace(train_dataset=node)
        monkeypatch.setattr(browse_dataset, "load_config", lambda *_: cfg)
        arguments = SimpleNamespace(
            config="c.py", out=str(tmp_path / "page"), num=3, start=0, spread=False, cfg_options=[]
        )
        assert browse_dataset.run(arguments) == 0
        page = (tmp_path / "page" / "index.html").read_text()
        assert page.count("<article>") == 3 and 'class="with-loss"> A dog .' in page and "c2, c1, c0" in page
        assert (tmp_path / "page" / "histograms.png").stat().st_size > 5000
        with Image.open(tmp_path / "page" / "0000000_0.jpg") as picture:
            # enlarged by a whole factor, so that labels can be read
            assert picture.width == picture.height and picture.width % SIZE == 0

    def test_statistics_and_drawn_boxes(self, world: Any) -> None:
        dataset = MGLLaVADataset(**world())
        assert dataset.statistics()["object tokens, with picture"].tolist() == [3, 5, 0]
        (drawn,) = dataset.draw(0)
        plain = Image.fromarray(dataset[0]["pixel_values"][0].permute(1, 2, 0).numpy())
        assert (np.asarray(drawn) != np.asarray(plain.resize(drawn.size, Image.Resampling.NEAREST))).any()
