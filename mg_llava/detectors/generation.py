"""Boxes for a whole data set: dealt out to processes, written as they are found, restartable."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TextIO

import torch
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.data import DataLoader, Dataset

from mg_llava.boxes.drawing import draw_boxes
from mg_llava.boxes.selection import PictureBoxes
from mg_llava.detectors.base import Detector
from mg_llava.detectors.data_pictures import DataPictures
from mg_llava.detectors.video_boxes import box_fields, find_in_videos
from mg_llava.videos.places import FramePlace
from mg_llava.videos.sampling import FrameSampling
from xtuner.engine.processes.environment import Collective
from xtuner.errors import XTunerError, counted
from xtuner.json_values import read_json
from xtuner.log import console, get_logger
from xtuner.registry import build, is_node

_POLL_SECONDS = 0.5


class _Key(NamedTuple):
    """A picture or a video: ``kind`` is the field of a record that names it."""

    kind: str
    name: str


class _Loaded(NamedTuple):
    """A picture, or why there is none."""

    key: str
    picture: Image.Image | None
    error: str = ""


class BoxGeneration:
    """Finds boxes in all pictures of a data set, and in the frames of its videos, and writes the box file of training.

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
        frame_sampling: which frames of the data's videos get boxes, too, see `DataPictures`; None = videos get none.

    Raises:
        XTunerError: see `DataPictures`.
    """

    provided_by_parent: ClassVar[tuple[str, ...]] = (
        "image_folder", "data_path", "batch_size", "num_workers", "frame_sampling"
    )  # fmt: skip

    def __init__(
        self,
        detector: Mapping[str, Any],
        image_folder: str | None = None,
        data_path: str | None = None,
        batch_size: int = 8,
        num_workers: int = 2,
        apply_exif_orientation: bool = False,
        data_columns: Mapping[str, str] | None = None,
        frame_sampling: FrameSampling | Mapping[str, Any] | None = None,
    ) -> None:
        self.detector = detector
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.apply_exif_orientation = apply_exif_orientation
        self.sampling = None if frame_sampling is None else _rule(frame_sampling)
        self.pictures = DataPictures(image_folder, data_path, data_columns, self.sampling)
        self.keys = self.pictures.names
        self.videos = self.pictures.videos.names if self.pictures.videos else []

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
            limit: only the first pictures, and the first videos.

        Returns:
            The box file, on rank 0; None elsewhere.

        Raises:
            XTunerError: parts of another detector or data set lie there.
        """
        collective = collective or Collective()
        rank, world_size = collective.rank, collective.world_size
        out = Path(out)
        keys = [*map(_picture_key, self.keys[:limit]), *map(_video_key, self.videos[:limit])]
        parts = out.with_name(f"{out.name}.parts")
        parts.mkdir(parents=True, exist_ok=True)
        self._check_settings(parts, keys)
        finished = parts / f"rank{rank}-of-{world_size}.done"
        finished.unlink(missing_ok=True)
        collective.barrier()
        done = {_key(record) for record in _read_parts(parts) if "error" not in record}
        own = [key for key in keys[rank::world_size] if key not in done]
        if rank == 0 and done:
            get_logger().info(
                "%d of %s are done already",
                len(done & set(keys)),
                _counted(len(self.keys[:limit]), self.videos[:limit]),
            )
        if own:
            self._find(own, parts / f"rank{rank}-{time.time_ns()}.jsonl", device, rank, draw, out)
        finished.touch()
        if rank != 0:
            return None
        _wait(parts, world_size)
        return self._join(out, parts, keys)

    def _check_settings(self, parts: Path, keys: Sequence[_Key]) -> None:
        names = [key.name if key.kind == "image" else f"video:{key.name}" for key in keys]
        settings: dict[str, Any] = {
            "detector": json.loads(json.dumps(dict(self.detector), default=str)),
            "pictures": hashlib.sha256("\n".join(names).encode("utf-8", "surrogatepass")).hexdigest()[:16],
        }
        if self.sampling is not None:
            settings["frame_sampling"] = asdict(self.sampling)
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
        self, keys: Sequence[_Key], file: Path, device: torch.device | str, rank: int, draw: int, out: Path
    ) -> None:
        detector = build(self.detector, device=device)
        pictures = [key.name for key in keys if key.kind == "image"]
        videos = [key.name for key in keys if key.kind == "video"]
        with file.open("a", encoding="utf-8") as lines:
            if pictures:
                self._find_pictures(detector, pictures, lines, rank, set(self.keys[:draw]), out)
            if videos:
                self._find_videos(detector, videos, lines, rank, set(self.videos[:draw]), out)

    def _find_pictures(
        self, detector: Detector, keys: Sequence[str], lines: TextIO, rank: int, drawn: set[str], out: Path
    ) -> None:
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

    def _find_videos(
        self, detector: Detector, names: Sequence[str], lines: TextIO, rank: int, drawn: set[str], out: Path
    ) -> None:
        def draw(name: str, place: FramePlace, picture: Image.Image, boxes: PictureBoxes) -> None:
            if name in drawn:
                _draw(picture, boxes, out, f"{name}_frame{place.number}")

        assert self.pictures.videos is not None
        with _progress("videos", len(names), rank) as advance:
            for record in find_in_videos(
                detector, self.pictures.videos, names, self.batch_size, self.num_workers, draw
            ):
                lines.write(json.dumps(record) + "\n")
                lines.flush()
                advance(1)

    def _batches(self, keys: Sequence[str], rank: int) -> Iterator[list[_Loaded]]:
        pictures = _Pictures(self.pictures, keys, self.apply_exif_orientation)
        loader = DataLoader(pictures, batch_size=self.batch_size, num_workers=self.num_workers, collate_fn=list)
        with _progress("boxes", len(keys), rank) as advance:
            for batch in loader:
                yield batch
                advance(len(batch))

    def _join(self, out: Path, parts: Path, keys: Sequence[_Key]) -> Path:
        records: dict[_Key, dict[str, Any]] = {}
        for record in _read_parts(parts):
            if "error" not in record or _key(record) not in records:
                records[_key(record)] = record
        broken = [records[key] for key in keys if "error" in records[key]]
        good = [records[key] for key in keys if "error" not in records[key]]
        temporary = out.with_name(f".{out.name}.tmp")
        with temporary.open("w", encoding="utf-8") as file:
            file.write("[\n" + ",\n".join(json.dumps(record) for record in good) + "\n]\n")
        temporary.replace(out)
        for record in broken[:10]:
            get_logger().warning("%s", record["error"])
        shown = [frame for record in good for frame in record.get("frames", [record])]
        videos = [record for record in good if "frames" in record]
        frames = sum(len(record["frames"]) for record in videos)
        what = _counted(len(good) - len(videos), videos)
        get_logger().info(
            "%s: %s in %s%s, %d without any, %d unreadable",
            out,
            counted(sum(len(record["boxes"]) for record in shown), "boxes"),
            what,
            f" ({counted(frames, 'frames')})" if videos else "",
            sum(not record["boxes"] for record in shown),
            len(broken),
        )
        # what could not be read is tried again by the next run
        shutil.rmtree(parts)
        return out


@contextmanager
def _progress(what: str, total: int, rank: int) -> Iterator[Callable[[int], None]]:
    """Shows how far the work is; yields what tells of more that is done."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=rank != 0) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.update(task, advance=count)


def _rule(node: FrameSampling | Mapping[str, Any]) -> FrameSampling:
    found = build(node) if is_node(node) else node
    return found if isinstance(found, FrameSampling) else FrameSampling(**found)


def _picture_key(name: str) -> _Key:
    return _Key("image", name)


def _video_key(name: str) -> _Key:
    return _Key("video", name)


def _key(record: Mapping[str, Any]) -> _Key:
    return _Key("video", record["video"]) if "video" in record else _Key("image", record["image"])


def _counted(pictures: int, videos: Sequence[Any]) -> str:
    parts = [counted(pictures, "pictures")] if pictures or not videos else []
    return " and ".join([*parts, *([counted(len(videos), "videos")] if videos else [])])


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
        **box_fields(found),
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
