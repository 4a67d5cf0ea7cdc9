"""Boxes for a whole data set: dealt out to processes, written as they are found, restartable."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.data import DataLoader, Dataset

from mg_llava.boxes.drawing import draw_boxes
from mg_llava.boxes.selection import PictureBoxes
from mg_llava.detectors.data_pictures import DataPictures
from xtuner.engine.processes.environment import Collective
from xtuner.errors import XTunerError, counted
from xtuner.json_values import read_json
from xtuner.log import console, get_logger
from xtuner.registry import build

_POLL_SECONDS = 0.5


class _Loaded(NamedTuple):
    """A picture, or why there is none."""

    key: str
    picture: Image.Image | None
    error: str = ""


class BoxGeneration:
    """Finds boxes in all pictures of a data set and writes the box file that training reads.

    Folder, records and batches are supplied by the command.

    Args:
        detector: its config node.
        image_folder: pictures stand below it; records name them relative to it. None where the records' own files
            hold them.
        data_path: records whose pictures are meant, in any form that training reads; None = every picture below
            `image_folder`.
        batch_size: pictures that the detector gets together.
        num_workers: processes that read pictures; 0 = none besides this one.
        apply_exif_orientation: turn pictures as their EXIF tag says; as in training.
        data_columns: the column of each field that has another name, as in training.

    Raises:
        XTunerError: see `DataPictures`.
    """

    provided_by_parent: ClassVar[tuple[str, ...]] = ("image_folder", "data_path", "batch_size", "num_workers")

    def __init__(
        self,
        detector: Mapping[str, Any],
        image_folder: str | None = None,
        data_path: str | None = None,
        batch_size: int = 8,
        num_workers: int = 2,
        apply_exif_orientation: bool = False,
        data_columns: Mapping[str, str] | None = None,
    ) -> None:
        self.detector = detector
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.apply_exif_orientation = apply_exif_orientation
        self.pictures = DataPictures(image_folder, data_path, data_columns)
        self.keys = self.pictures.names

    def run(
        self,
        out: str | Path,
        device: torch.device | str = "cpu",
        collective: Collective | None = None,
        draw: int = 0,
        limit: int | None = None,
    ) -> Path | None:
        """Finds the boxes that are still to be found; the first process joins all to the file `out`.

        Args:
            out: box file. Until it is complete, records stand line by line in ``<out>.parts``; a run that was cut off
                goes on from there, also with another number of processes.
            device: where the detector computes.
            collective: this process among the others; None = alone.
            draw: so many pictures are saved with their boxes in ``<out>.drawn``.
            limit: only the first pictures.

        Returns:
            The box file, on rank 0; None elsewhere.

        Raises:
            XTunerError: parts of another detector or data set lie there.
        """
        collective = collective or Collective()
        rank, world_size = collective.rank, collective.world_size
        out = Path(out)
        keys = self.keys[:limit]
        parts = out.with_name(f"{out.name}.parts")
        parts.mkdir(parents=True, exist_ok=True)
        self._check_settings(parts, keys)
        finished = parts / f"rank{rank}-of-{world_size}.done"
        finished.unlink(missing_ok=True)
        collective.barrier()
        done = {record["image"] for record in _read_parts(parts) if "error" not in record}
        own = [key for key in keys[rank::world_size] if key not in done]
        if rank == 0 and done:
            get_logger().info("%d of %d pictures are done already", len(done & set(keys)), len(keys))
        if own:
            self._find(own, parts / f"rank{rank}-{time.time_ns()}.jsonl", device, rank, set(keys[:draw]), out)
        finished.touch()
        if rank != 0:
            return None
        _wait(parts, world_size)
        return self._join(out, parts, keys)

    def _check_settings(self, parts: Path, keys: Sequence[str]) -> None:
        settings = {
            "detector": json.loads(json.dumps(dict(self.detector), default=str)),
            "pictures": hashlib.sha256("\n".join(keys).encode()).hexdigest()[:16],
        }
        file = parts / "settings.json"
        if file.is_file():
            found = read_json(file, dict, f"Remove '{parts}' to find all boxes anew.")
            if found == settings:
                return
            # a start that failed before the first box binds nobody
            if any(True for _ in _read_parts(parts)):
                raise XTunerError(
                    f"'{parts}' holds boxes of another detector or of other pictures ({found['detector']}): remove "
                    "it, or choose another --out."
                )
        temporary = parts / f".settings.{os.getpid()}.tmp"
        temporary.write_text(json.dumps(settings), encoding="utf-8")
        temporary.replace(file)

    def _find(
        self, keys: Sequence[str], file: Path, device: torch.device | str, rank: int, drawn: set[str], out: Path
    ) -> None:
        detector = build(self.detector, device=device)
        with file.open("a", encoding="utf-8") as lines:
            for batch in self._batches(keys, rank):
                good = [loaded for loaded in batch if loaded.picture is not None]
                pictures = [loaded.picture for loaded in good if loaded.picture is not None]
                found = detector(pictures, [loaded.key for loaded in good]) if good else []
                for loaded, boxes in zip(good, found, strict=True):
                    lines.write(json.dumps(_record(loaded, boxes)) + "\n")
                    if loaded.key in drawn and loaded.picture is not None:
                        _draw(loaded.picture, boxes, out, loaded.key)
                for loaded in batch:
                    if loaded.picture is None:
                        lines.write(json.dumps({"image": loaded.key, "error": loaded.error}) + "\n")
                lines.flush()

    def _batches(self, keys: Sequence[str], rank: int) -> Iterator[list[_Loaded]]:
        pictures = _Pictures(self.pictures, keys, self.apply_exif_orientation)
        loader = DataLoader(pictures, batch_size=self.batch_size, num_workers=self.num_workers, collate_fn=list)
        columns = (TextColumn("boxes"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, disable=rank != 0) as progress:
            task = progress.add_task("boxes", total=len(keys))
            for batch in loader:
                yield batch
                progress.update(task, advance=len(batch))

    def _join(self, out: Path, parts: Path, keys: Sequence[str]) -> Path:
        records: dict[str, dict[str, Any]] = {}
        for record in _read_parts(parts):
            if "error" not in record or record["image"] not in records:
                records[record["image"]] = record
        broken = [records[key] for key in keys if "error" in records[key]]
        good = [records[key] for key in keys if "error" not in records[key]]
        temporary = out.with_name(f".{out.name}.tmp")
        with temporary.open("w", encoding="utf-8") as file:
            file.write("[\n" + ",\n".join(json.dumps(record) for record in good) + "\n]\n")
        temporary.replace(out)
        for record in broken[:10]:
            get_logger().warning("%s", record["error"])
        count = sum(len(record["boxes"]) for record in good)
        without = sum(not record["boxes"] for record in good)
        get_logger().info(
            "%s: %s in %s, %d without any, %d unreadable",
            out,
            counted(count, "boxes"),
            counted(len(good), "pictures"),
            without,
            len(broken),
        )
        # pictures that could not be read are tried again by the next run
        shutil.rmtree(parts)
        return out


class _Pictures(Dataset):
    """Pictures by key, opened where the loader's workers run."""

    def __init__(self, pictures: DataPictures, keys: Sequence[str], apply_exif_orientation: bool) -> None:
        self.pictures = pictures
        self.keys = keys
        self.apply_exif_orientation = apply_exif_orientation

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> _Loaded:
        key = self.keys[index]
        try:
            return _Loaded(key, self.pictures.open(key, self.apply_exif_orientation))
        except XTunerError as error:
            return _Loaded(key, None, str(error))


def _record(loaded: _Loaded, found: PictureBoxes) -> dict[str, Any]:
    assert loaded.picture is not None
    return {
        "image": loaded.key,
        "boxes": [[round(number, 2) for number in box] for box in found.boxes.tolist()],
        "labels": list(found.labels),
        "scores": [round(score, 4) for score in found.scores.tolist()],
        "width": loaded.picture.width,
        "height": loaded.picture.height,
    }


def _draw(picture: Image.Image, found: PictureBoxes, out: Path, key: str) -> None:
    target = out.with_name(f"{out.name}.drawn") / f"{key.replace('/', '_')}.png"
    target.parent.mkdir(parents=True, exist_ok=True)
    draw_boxes(picture, found).save(target)


def _read_parts(parts: Path) -> Iterator[dict[str, Any]]:
    """Yields the records of all complete lines; a line that was cut off by a kill is left out."""
    for file in sorted(parts.glob("*.jsonl")):
        with file.open("rb") as lines:
            for line in lines:
                if line.endswith(b"\n"):
                    yield json.loads(line)


def _wait(parts: Path, world_size: int) -> None:
    # by files, not by a barrier: its time limit would end a run whose ranks differ by an hour
    while not all((parts / f"rank{rank}-of-{world_size}.done").exists() for rank in range(world_size)):
        time.sleep(_POLL_SECONDS)
