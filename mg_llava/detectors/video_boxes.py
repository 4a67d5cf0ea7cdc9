"""Boxes of sampled frames: frames are read in worker processes, found part by part, and joined to a record a video."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from mg_llava.boxes.selection import PictureBoxes
from mg_llava.detectors.base import Detector
from mg_llava.detectors.data_videos import DataVideos
from mg_llava.videos.places import FramePlace
from xtuner.errors import XTunerError

OnFrame = Callable[[str, FramePlace, Image.Image, PictureBoxes], None]


class _Part(NamedTuple):
    """Some frames of a video in a row, the last of them or not; or why there are none."""

    name: str
    places: list[FramePlace]
    pictures: list[Image.Image]
    is_last: bool
    error: str = ""


@dataclass
class _Open:
    """What is found of a video so far."""

    frames: list[dict[str, Any]] = field(default_factory=list)
    sizes: set[tuple[int, int]] = field(default_factory=set)


def find_in_videos(
    detector: Detector, videos: DataVideos, names: Sequence[str], batch_size: int, num_workers: int, on_frame: OnFrame
) -> Iterator[dict[str, Any]]:
    """Yields a record of a box file for each video, or ``{"video", "error"}`` where it cannot be read.

    Args:
        detector: finds boxes in frames.
        videos: the data's.
        names: of those that are meant.
        batch_size: frames that the detector gets together, at most: those of one video.
        num_workers: processes that read; 0 = this one.
        on_frame: called with each frame: its video's name, place, picture and boxes.
    """
    frames = _Frames(videos, names, batch_size)
    workers = min(num_workers, len(names))
    parts = DataLoader(frames, batch_size=None, num_workers=workers, collate_fn=_as_it_is)
    unfinished: dict[str, _Open] = {}
    for part in parts:
        if part.error:
            unfinished.pop(part.name, None)
            yield {"video": part.name, "error": part.error}
            continue
        one = unfinished.setdefault(part.name, _Open())
        found = detector(part.pictures, list(map(str, part.places))) if part.pictures else []
        for place, picture, boxes in zip(part.places, part.pictures, found, strict=True):
            one.frames.append({"time": place.time, "index": place.number, **box_fields(boxes)})
            one.sizes.add(picture.size)
            on_frame(part.name, place, picture, boxes)
        if part.is_last:
            yield _record(part.name, unfinished.pop(part.name))


def box_fields(found: PictureBoxes) -> dict[str, Any]:
    """Returns the fields of a box file's record that say what was found in a picture."""
    return {
        "boxes": [[round(number, 2) for number in box] for box in found.boxes.tolist()],
        "labels": list(found.labels),
        "scores": [round(score, 4) for score in found.scores.tolist()],
    }


def _record(name: str, found: _Open) -> dict[str, Any]:
    record: dict[str, Any] = {"video": name, "frames": found.frames}
    if len(found.sizes) == 1:
        # a stream may change its size on the way: then none is said, and boxes are mapped when frames are read
        ((record["width"], record["height"]),) = found.sizes
    return record


def _as_it_is(part: Any) -> Any:
    return part


class _Frames(IterableDataset):
    """Frames of videos, a few at a time; each worker reads its share of the videos."""

    def __init__(self, videos: DataVideos, names: Sequence[str], size: int) -> None:
        self.videos = videos
        self.names = names
        self.size = size

    def __iter__(self) -> Iterator[_Part]:
        worker = get_worker_info()
        names = self.names if worker is None else self.names[worker.id :: worker.num_workers]
        for name in names:
            before: _Part | None = None
            try:
                for places, pictures in self.videos.batches(name, self.size):
                    if before is not None:
                        yield before
                    before = _Part(name, places, pictures, False)
            except XTunerError as error:
                yield _Part(name, [], [], True, str(error))
                continue
            yield _Part(name, [], [], True) if before is None else before._replace(is_last=True)
