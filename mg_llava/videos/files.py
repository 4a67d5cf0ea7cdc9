"""Pictures and frames of videos by their places: what a data source's pictures are, once it may hold videos."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from mg_llava.videos.open import open_video
from mg_llava.videos.places import SCHEME, FramePlace, read_frame_place
from xtuner.data.pictures.files import PictureFiles
from xtuner.errors import SampleError

OpenPicture = Callable[["str | io.BytesIO"], Image.Image]


class FrameFiles:
    """Pictures as they are stored, and frames that are decoded when they are wanted.

    Args:
        stored: pictures and videos by their paths.
        cached: frames that were decoded before, by their places; None = none were.
    """

    def __init__(self, stored: PictureFiles, cached: PictureFiles | None = None) -> None:
        self.stored = stored
        self.cached = cached

    @property
    def strict_paths(self) -> bool:
        """Whether what lies outside the folder is refused."""
        return bool(getattr(self.stored, "strict_paths", False))

    def images(self, paths: Sequence[str], open_picture: OpenPicture) -> Iterator[Image.Image]:
        """Yields pictures and frames as 8-bit RGB, in the order of `paths`; frames of a video in a row by one reading.

        Args:
            paths: of pictures, and places of frames.
            open_picture: reads the file of a picture.

        Raises:
            SampleError: one of them cannot be read.
        """
        for run in _runs(paths):
            places = [place for place in map(read_frame_place, run) if place is not None]
            if places:
                yield from self._frames(places, open_picture)
            else:
                yield from (open_picture(self.stored.open(path)) for path in run)

    def video(self, path: str) -> str | io.BytesIO:
        """Returns the path of a video's file or folder, or its bytes.

        Raises:
            SampleError: it lies outside the folder, where that is refused, or is in none of the archives.
        """
        return self.stored.open(path)

    def open(self, path: str) -> str | io.BytesIO:
        """Returns the path of a picture's file, or the bytes of a picture or of a frame (as PNG)."""
        place = read_frame_place(path)
        if place is None:
            return self.stored.open(path)
        if self.cached is not None and self.cached.holds(path):
            return self.cached.open(path)
        content = io.BytesIO()
        next(self._decoded([place])).save(content, "PNG")
        content.seek(0)
        return content

    def holds(self, path: str) -> bool:
        """Says whether a picture, or the video of a frame, is there."""
        place = read_frame_place(path)
        return self.stored.holds(path if place is None else place.video)

    def missing(self, paths: pa.StringArray) -> list[str]:
        """Returns those of `paths` that are not there; of a video's frames the first."""
        is_frame = pc.starts_with(paths, SCHEME)
        if not pc.any(is_frame).as_py():
            return self.stored.missing(paths)
        first: dict[str, str] = {}
        for text in paths.filter(is_frame).to_pylist():
            place = read_frame_place(text)
            first.setdefault(text if place is None else place.video, text)
        videos = self.stored.missing(pa.array(first, pa.string()))
        return self.stored.missing(paths.filter(pc.invert(is_frame))) + [first[video] for video in videos]

    def outside(self, path: str) -> str | None:
        """Says how a path leads out of where the pictures lie; None where it does not."""
        place = read_frame_place(path)
        return self.stored.outside(path if place is None else place.video)

    def _frames(self, places: Sequence[FramePlace], open_picture: OpenPicture) -> Iterator[Image.Image]:
        names = list(map(str, places))
        if self.cached is not None and all(map(self.cached.holds, names)):
            yield from (open_picture(self.cached.open(name)) for name in names)
        else:
            yield from self._decoded(places)

    def _decoded(self, places: Sequence[FramePlace]) -> Iterator[Image.Image]:
        path = places[0].video
        with open_video(self.video(path), listed=places[0].is_unread, name=path) as video:
            if places[0].is_unread:
                raise SampleError(
                    "video does not decode",
                    f"video '{path}' could not be read when the data were prepared, and can be now: prepare it again.",
                )
            yield from video.frames(places)


def what_is(path: str) -> tuple[str, str]:
    """Returns "picture" and its path, or "video" and that of a frame's video."""
    place = read_frame_place(path)
    return ("picture", path) if place is None else ("video", place.video)


def named_picture(path: str) -> str:
    """Returns how messages call a picture, or a frame's video, by its path in a sample."""
    kind, name = what_is(path)
    return f"{kind} '{name}'"


def _runs(paths: Sequence[str]) -> Iterator[list[str]]:
    """Cuts `paths` where one does not go on with the frames of the video before it."""
    if not paths:
        return
    run = [paths[0]]
    for before, path in pairwise(paths):
        first, second = read_frame_place(before), read_frame_place(path)
        if first is None or second is None:
            goes_on = first is second
        else:
            goes_on = first.video == second.video and first.time <= second.time
        if goes_on:
            run.append(path)
        else:
            yield run
            run = [path]
    yield run
